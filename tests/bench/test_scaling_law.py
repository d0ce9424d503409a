"""Laws and networks that are known are found again, and no more is said of them than their points tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.scaling.law import Law, extrapolate, extremes, fit, speedups
from bench.scaling.network import Measured, Network, Scenario, fit_network, simulate, worst_error

COUNTS = (1, 2, 4, 8)
parameters = st.floats(0, 0.5)


@settings(max_examples=30)
@given(parameters, st.floats(0, 0.05))
def test_a_law_is_found_again(sigma: float, kappa: float) -> None:
    law = Law(sigma, kappa)
    found = fit({n: law.speedup(n) for n in COUNTS})
    assert found.sigma == pytest.approx(sigma, abs=1e-5)
    assert found.kappa == pytest.approx(kappa, abs=1e-5)


@settings(max_examples=30)
@given(st.lists(st.floats(0.5, 20), min_size=3, max_size=3))
def test_parameters_are_never_negative(gains: list[float]) -> None:
    found = fit({1: 1.0, **dict(zip(COUNTS[1:], gains, strict=True))})
    assert found.sigma >= 0
    assert found.kappa >= 0


def test_known_laws() -> None:
    assert Law(0, 0).speedup(64) == 64
    assert Law(0.25, 0).speedup(10**9) == pytest.approx(4)  # Amdahl: one over the serial share
    assert Law(0.19, 0.0001).peak == 90
    assert Law(0.1, 0).peak == float("inf")


def test_two_counts_leave_it_open() -> None:
    with pytest.raises(ValueError, match="two parameters"):
        fit({1: 1.0, 2: 1.8})
    low, high = extremes({1: 1.0, 2: 1.8})
    assert low.speedup(2) == pytest.approx(1.8)
    assert high.speedup(2) == pytest.approx(1.8)
    assert (low.sigma, high.kappa) == (0, 0)
    (ahead,) = extrapolate({1: [10, 20, 30], 2: [18, 36, 54]}, [8])
    assert ahead.value is None
    assert ahead.low == pytest.approx(low.speedup(8))
    assert ahead.high == pytest.approx(high.speedup(8))
    assert ahead.confidence == 0.75  # of three repeats


@pytest.mark.parametrize(("repeats", "confidence"), [(1, 0.0), (5, 0.9375), (9, 0.95)])
def test_few_repeats_are_not_sold_as_sure(repeats: int, confidence: float) -> None:
    (ahead,) = extrapolate({n: [100.0 * n] * repeats for n in (1, 2, 4)}, [8])
    assert ahead.confidence == confidence


@settings(max_examples=30)
@given(st.floats(0, 0.3), st.floats(0, 0.02))
def test_every_law_through_the_point_lies_between_the_extremes(sigma: float, kappa: float) -> None:
    law = Law(sigma, kappa)
    low, high = extremes({1: 1.0, 2: law.speedup(2)})
    assert low.speedup(8) <= law.speedup(8) * (1 + 1e-9)
    assert law.speedup(8) <= high.speedup(8) * (1 + 1e-9)


def test_a_speedup_above_the_ideal_counts_as_ideal() -> None:
    assert extremes({1: 1.0, 2: 2.2}) == (Law(0.0, 0.0), Law(0.0, 0.0))


def test_speedups_are_taken_within_repeats() -> None:
    # The machine is half as fast in the second repeat, for both.
    assert speedups({1: [100, 50, 100], 2: [180, 90, 200]}) == {1: 1, 2: 1.8}


def test_the_interval_of_an_extrapolation_covers_the_truth() -> None:
    law, draw, hits = Law(0.05, 0.002), np.random.default_rng(0), 0
    for _ in range(10):
        rates = {n: (100 * law.speedup(n) * draw.normal(1, 0.02, 7)).tolist() for n in (1, 2, 4)}
        (ahead,) = extrapolate(rates, [8])
        assert ahead.value is not None
        assert ahead.low <= ahead.high
        hits += ahead.low <= law.speedup(8) <= ahead.high
    assert hits >= 8


@settings(max_examples=30)
@given(st.floats(1e-6, 1e-3), st.floats(1e-11, 1e-8))
def test_a_network_is_found_again(alpha_s: float, beta_s: float) -> None:
    network = Network(alpha_s, beta_s)
    points = [Measured(n, 2**k, network.all_reduce(n, 2**k)) for n in (2, 4) for k in range(10, 28, 4)]
    found = fit_network(points)
    assert found.alpha_s == pytest.approx(alpha_s, rel=1e-6)
    assert found.beta_s == pytest.approx(beta_s, rel=1e-6)
    assert worst_error(found, points) < 1e-6


def test_one_size_tells_nothing() -> None:
    with pytest.raises(ValueError, match="one size"):
        fit_network([Measured(2, 1024, 0.1), Measured(2, 1024, 0.2)])


def scenario(*, strong: bool = False, gb_per_s: float = 1.0) -> Scenario:
    return Scenario(
        name="", step_s=0.3, batch_size=100, gradient_bytes=100_000_000, network=Network(0, 1e-9 / gb_per_s),
        strong=strong,
    )  # fmt: skip


def test_simulated_steps() -> None:
    # Ring of 4: 2 · 3/4 · 0.1 s = 0.15 s, which fits into the backward pass of 0.2 s.
    four = simulate(scenario(), 4)
    assert four.all_reduce_s == pytest.approx(0.15)
    assert four.low == pytest.approx(4 * 0.3 / 0.45)
    assert four.high == pytest.approx(4)
    # Strong: each computes for 0.075 s, of which 0.05 s hide a part.
    strong = simulate(scenario(strong=True), 4)
    assert strong.low == pytest.approx(0.3 / (0.075 + 0.15))
    assert strong.high == pytest.approx(0.3 / (0.025 + 0.15))
    assert simulate(scenario(gb_per_s=1e9), 4).low == pytest.approx(4)
    # Two nodes of 4: from 2 · 3/4 to 2 · 7/8 of 0.1 s.
    assert simulate(replace(scenario(), unit=4), 2).all_reduce_s == pytest.approx(0.025)
    assert simulate(replace(scenario(), unit=4), 1).low == 1
