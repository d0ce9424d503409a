"""Emulated accelerators: the arithmetic with a made-up loader and a made-up clock."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.accelerator import (
    PRESETS,
    Accelerator,
    Timings,
    emulate,
    feeds,
    hold,
    predicted,
    rate,
    utilisation,
)
from bench.accelerator_ranks import _Meeting, _Shared
from bench.accelerator_report import verdict
from bench.accelerator_run import _search
from bench.long_epochs import in_passes, with_long_epochs
from loader import Order, RandomResizedCrop
from shard.dataset import Dataset
from tests.bench.made_up_loader import BATCH, Clock, steady


def run(
    images_per_s: float,
    demand: float,
    *,
    steps: int = 200,
    depth: int = 4,
    stock: int = 0,
    blocking: bool = False,
) -> Timings:
    clock = Clock()
    return emulate(
        steady(clock, images_per_s, depth, stock),
        BATCH / demand,
        drain=depth + 1,
        meet=lambda step, ready, elapsed_s: (ready, step < steps),
        clock=clock,
        sleep=clock.sleep,
        blocking=blocking,
    )


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("times", [0.5, 0.8, 1, 1.25, 2])
def test_utilisation_is_loader_over_demand(times: float, blocking: bool) -> None:
    images_per_s = 1000.0
    timings = run(images_per_s, times * images_per_s, blocking=blocking)
    assert utilisation([timings]) == pytest.approx(predicted(images_per_s, times * images_per_s), abs=0.005)
    assert timings.steps == 200
    assert timings.images == 200 * BATCH
    assert rate([timings]) == pytest.approx(images_per_s * min(1.0, times), rel=0.005)


@given(st.floats(100, 10_000), st.floats(0.2, 3), st.integers(1, 8), st.integers(0, 8))
def test_what_the_loader_had_in_stock_does_not_count(
    images_per_s: float, times: float, depth: int, stock: int
) -> None:
    timings = run(images_per_s, times * images_per_s, depth=depth, stock=min(stock, depth))
    assert utilisation([timings]) == pytest.approx(min(1.0, 1 / times), abs=0.03)


@given(st.floats(100, 5000), st.floats(0.2, 3), st.integers(1, 8))
def test_a_loader_that_is_held_back_has_a_known_rate(images_per_s: float, times: float, depth: int) -> None:
    clock = Clock()
    fast = steady(clock, 3 * images_per_s, depth=8, stock=8)
    timings = emulate(
        hold(fast, images_per_s, depth, clock, clock.sleep), BATCH / (times * images_per_s), drain=depth + 1,
        meet=lambda step, ready, elapsed_s: (ready, step < 200), clock=clock, sleep=clock.sleep,
    )  # fmt: skip
    assert utilisation([timings]) == pytest.approx(min(1.0, 1 / times), abs=0.03)


def test_without_draining_a_stock_would_count() -> None:
    clock = Clock()
    timings = emulate(
        steady(clock, 1000.0, depth=8, stock=8), BATCH / 2000.0, drain=0,
        meet=lambda step, ready, elapsed_s: (ready, step < 20), clock=clock, sleep=clock.sleep,
    )  # fmt: skip
    assert utilisation([timings]) > 0.6  # not the 0.5 that the loader can keep up


def test_waking_up_late_is_not_idling() -> None:
    clock = Clock()

    def late(seconds: float) -> None:
        clock.now += seconds + 0.004

    timings = emulate(
        steady(clock, 1000.0, depth=4), BATCH / 500.0, drain=5,
        meet=lambda step, ready, elapsed_s: (ready, step < 50), clock=clock, sleep=late,
    )  # fmt: skip
    assert utilisation([timings]) == pytest.approx(1)
    assert rate([timings]) == pytest.approx(500)


def test_all_wait_for_the_slowest() -> None:
    clock = Clock()
    timings = emulate(
        steady(clock, 10_000.0, depth=4), 0.1, drain=5,
        meet=lambda step, ready, elapsed_s: (ready + 0.1, step < 50), clock=clock, sleep=clock.sleep,
    )  # fmt: skip
    assert utilisation([timings]) == pytest.approx(0.5)


def test_all_ranks_begin_at_the_same_time_and_end_with_the_same_step() -> None:
    shared = _Shared(3, threading.Barrier(3), SimpleNamespace(value=-1), [0.0] * 6)

    def rank(number: int) -> list[tuple[float, bool]]:
        meeting, answers = _Meeting(shared, number, seconds=10.0), []
        more, step = True, 0
        while more:
            start, more = meeting(step, ready=100.0 * step + (step + number) % 3, elapsed_s=2.0 * step)
            answers.append((start, more))
            step += 1
        return answers

    with ThreadPoolExecutor(3) as pool:
        first, second, third = pool.map(rank, range(3))
    assert first == second == third
    assert [start for start, _ in first] == [100.0 * step + 2 for step in range(6)]
    assert [more for _, more in first] == [True] * 5 + [False]  # the sixth begins when 10 s have gone


def test_mlperf_storage_resnet50() -> None:
    h100, a100 = PRESETS["h100-resnet50"], PRESETS["a100-resnet50"]
    assert h100.demand == pytest.approx(1786, abs=0.5)
    assert a100.demand == pytest.approx(920, abs=0.5)
    # A loader of exactly that rate keeps it busy, one of 90 % just passes.
    assert predicted(1786, h100.demand) == 1
    assert [feeds(share * h100.demand, h100) for share in (0.89, 0.9, 1.79, 1.8, 7.2)] == [0, 1, 1, 2, 8]


@given(st.integers(0, 12), st.integers(0, 20), st.integers(1, 10))
def test_the_search_finds_the_last_that_passes(true: int, estimate: int, most: int) -> None:
    tried: list[int] = []

    def passes(number: int) -> bool:
        tried.append(number)
        return number <= true

    found, at_least = _search(passes, estimate, most)
    assert found == min(true, most)
    assert at_least == (true >= most)
    assert all(1 <= number <= most for number in tried)
    assert found == most or found + 1 in tried  # measured, not inferred
    assert found == 0 or found in tried


def test_repeated_rows_get_other_crops(dataset: Dataset) -> None:
    split, once = with_long_epochs(dataset, "train", 8).split("train"), dataset.split("train")
    assert len(split) == 127 * len(once)  # the least that has 8,000
    assert split.key(len(once) + 3) == once.key(3)
    assert split.offset[len(once) + 3] == once.offset[3]
    ids = [3, len(once) + 3]
    first, second = RandomResizedCrop(size=32).params(0, 0, ids, split.width[ids], split.height[ids]).window
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("order", [Order(shuffle="global"), Order(shuffle="window", window=1, lanes=2)])
@pytest.mark.parametrize("repeats", [1, 3])
def test_passes_take_every_sample_once(dataset: Dataset, order: Order, repeats: int) -> None:
    shard = np.tile(dataset.split("train").shard, 4)
    drawn = in_passes(replace(order, repeats=repeats), 4).draws(shard, 0, 0)
    assert len(np.unique(drawn)) == 4 * 63  # other crops every time
    for number in range(4):
        one = drawn[63 * number :][:63]
        assert np.bincount(one % 63).max() == repeats
        assert (one % 252 // 63 == number).all()
    assert not np.array_equal(drawn[:63] % 63, drawn[63:126] % 63)


def test_passes_balance_as_epochs_do() -> None:
    label = np.array([0] * 6 + [1] * 2)
    order = in_passes(Order(shuffle="global", balance=1.0), 3)
    drawn = order.draws(np.zeros(24, np.int32), 0, 0, np.tile(label, 3))
    assert [np.bincount(label[one % 8]).tolist() for one in np.split(drawn, 3)] == [[4, 4]] * 3


def test_long_epochs_end_where_they_are_told(dataset: Dataset) -> None:
    assert with_long_epochs(dataset, "train", 8, most=63).times == 1
    assert with_long_epochs(dataset, "train", 8, most=64).times == 2


def test_large_batches_do_not_make_a_large_index(dataset: Dataset) -> None:
    def samples(global_batch: int) -> int:
        return with_long_epochs(dataset, "train", global_batch).times * 63

    assert samples(400) >= 1000 * 400
    assert 2_000_000 <= samples(8 * 400) < 2_000_063
    assert samples(1_000_000) >= 100 * 1_000_000
    assert with_long_epochs(replace(dataset), "val", 1).times == -(-1000 // 21)


def test_verdicts() -> None:
    def record(found: int | None, *, at_least: bool = False) -> dict[str, object]:
        def point(number: int, au: float) -> dict[str, object]:
            interval = {"value": au, "low": au, "high": au, "confidence": 0.0}
            return {
                "accelerators": number,
                "au_interval": interval,
                "passed": au >= 0.9,
                "loader_images_per_s": [800],
            }

        return {
            "accelerator": {"demand": Accelerator(step_s=0.5, batch_size=200, source="").demand},
            "settings": {"pass": 0.9},
            "accelerators": 1,
            "estimate": 2,
            "feeds": found,
            "feeds_at_least": at_least,
            "points": [point(1, 0.98 if found else 0.5), point(2, 0.95), point(3, 0.6)],
        }

    assert "feeds 2 of them, 95.0% busy (pass: 90%); with 3 they are 60.0% busy" in verdict(record(2))
    assert "feeds at least 2" in verdict(record(2, at_least=True))
    assert "feeds no accelerator of this kind: its loader gives 800 images/s, which is 2.00" in verdict(
        record(0)
    )
    assert "AU 50.0% with 1: does not pass" in verdict(record(None))
