"""What `python -m train compare` computes: tests of significance and the Pareto front, with known results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from shard.errors import FeedlineError
from train.compare.pareto import pareto_front
from train.compare.significance import compare_all, holm, mcnemar, paired_interval
from train.compare.tables import verdict


def test_mcnemar_by_hand() -> None:
    # 1 of 8 disagreements: 2 · (C(8,0) + C(8,1)) / 2⁸.
    assert mcnemar(1, 7) == mcnemar(7, 1) == pytest.approx(2 * (1 + 8) / 256)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1
    assert mcnemar(30, 55) == pytest.approx(binomtest(30, 85, 0.5).pvalue)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_the_interval_is_that_of_scipys_paired_bootstrap() -> None:
    numbers = np.arange(200)  # of the samples; each is right or not
    a, b = numbers < 150, (numbers >= 60) & (numbers < 180)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    theirs = bootstrap(
        (a.astype(float), b.astype(float)), lambda x, y, axis: 100 * (x.mean(axis) - y.mean(axis)), paired=True,
        method="percentile", n_resamples=9999, rng=np.random.default_rng(1), vectorized=True,
    ).confidence_interval  # fmt: skip
    assert paired_interval(only_a, only_b, 200) == pytest.approx((theirs.low, theirs.high), abs=0.75)
    assert paired_interval(0, 0, 200) == (0, 0)


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@settings(max_examples=50)
@given(points)
def test_the_front_beats_all_others_and_none_of_its_own(found: list[tuple[int, int]]) -> None:
    front = pareto_front([c for c, _ in found], [v for _, v in found]).tolist()

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    best = [point for point, on in zip(found, front, strict=True) if on]
    for point, on in zip(found, front, strict=True):
        assert on != any(beats(other, point) for other in best)


def test_only_the_samples_that_both_have_are_compared() -> None:
    a = np.array([0, 1, 2]), np.array([True, True, False])
    b = np.array([1, 2, 5]), np.array([False, False, True])
    (pair,) = compare_all({"a": a, "b": b})
    assert (pair.samples, pair.only_a, pair.only_b, pair.top1_a, pair.top1_b) == (2, 1, 0, 50, 0)
    assert not pair.significant
    assert verdict(pair) == "a and b: no significant difference (p = 1)"
    with pytest.raises(FeedlineError, match="a and c decoded no sample in common"):
        compare_all({"a": a, "c": (np.array([7]), np.array([True]))})
