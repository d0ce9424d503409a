"""Intervals of medians: known values, and that they cover what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.intervals import median_interval, ratio_figures, ratio_interval
from bench.report import ratio_lines


@pytest.mark.parametrize(
    ("n", "k", "confidence"), [(1, 0, 0.0), (3, 0, 0.75), (5, 0, 0.9375), (9, 1, 0.9609375)]
)
def test_known_intervals(n: int, k: int, confidence: float) -> None:
    found = median_interval(range(n, 0, -1))
    assert (found.low, found.high) == (k + 1, n - k)
    assert found.value == (n + 1) / 2
    assert found.confidence == pytest.approx(confidence)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_the_median_lies_inside(values: list[float], confidence: float) -> None:
    found = median_interval(values, confidence)
    assert found.low <= found.value <= found.high
    assert found.confidence >= confidence or (found.low, found.high) == (min(values), max(values))


def test_coverage_of_skewed_noise() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        found = median_interval(random.lognormal(0, 1, 11).tolist())
        hits += found.low <= 1 <= found.high
    assert hits / 2000 >= 0.95


def test_ratios_are_taken_within_repeats() -> None:
    found = ratio_interval([2, 20, 200], [1, 10, 100])
    assert (found.low, found.value, found.high) == (2, 2, 2)
    # The machine slows down threefold in the second repeat: ratios of medians would say otherwise.
    assert ratio_interval([300, 100, 310], [100, 50, 155]).value == 2


def test_a_record_has_a_ratio_and_its_interval() -> None:
    found = ratio_figures({"a / b": ([3, 2, 8, 5], [1, 1, 2, 1])})
    assert found["ratios"] == {"a / b": 3.5}
    assert found["ratio_intervals"] == {"a / b": {"low": 2, "high": 5, "confidence": 0.875}}
    assert ratio_lines(found) == ["a / b: 3.500 (2.000 – 5.000, 88%)"]


def test_no_values() -> None:
    with pytest.raises(ValueError, match="no values"):
        median_interval([])
