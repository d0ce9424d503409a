from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.errors import FeedlineError
from train.distributed import World
from train.stop import Plateau, StopConfig, Stopped, StopSignal


def ends_after(config: StopConfig, values: list[float]) -> tuple[int, str]:
    """Number of the evaluation at which the run ends, and why; 0 if it does not."""
    plateau = Plateau()
    for number, value in enumerate(values, start=1):
        if why := plateau.observe(config, {"top1": value, "loss": value, "top5": 0.0}):
            return number, why
    return 0, ""


def test_patience_counts_evaluations_without_improvement() -> None:
    config = StopConfig(patience=2)
    assert ends_after(config, [10, 20, 19, 21, 20, 20.5, 99]) == (
        6, "top1 has not improved on 21 in 2 evaluations",
    )  # fmt: skip
    assert ends_after(config, [10, 20, 19, 21, 20, 22]) == (0, "")
    assert ends_after(StopConfig(), [10.0] * 100) == (0, "")


def test_small_changes_are_none_but_add_up() -> None:
    config = StopConfig(patience=3, min_change=1.0)
    assert ends_after(config, [10, 10.5, 11.0, 11.0]) == (4, "top1 has not improved on 10 in 3 evaluations")
    assert ends_after(config, [10, 10.6, 11.2, 11.8, 12.4, 13, 13.6])[0] == 0


def test_a_loss_improves_downwards() -> None:
    assert ends_after(StopConfig(patience=2, stop_metric="loss"), [3, 2, 1, 1.1, 1.2])[0] == 5
    assert ends_after(StopConfig(patience=2, stop_metric="loss", stop_mode="max"), [3, 2, 1])[0] == 3
    assert ends_after(StopConfig(target=1.0, stop_metric="loss"), [3, 2, 1.0, 0.5]) == (
        3, "loss 1 reached the target 1",
    )  # fmt: skip


def test_target() -> None:
    assert ends_after(StopConfig(target=93), [50, 92.9, 93.1]) == (3, "top1 93.1 reached the target 93")


@given(st.lists(st.floats(0, 100), max_size=20), st.integers(1, 4), st.integers(0, 19))
def test_a_checkpoint_in_between_changes_nothing(values: list[float], patience: int, at: int) -> None:
    config = StopConfig(patience=patience)
    one, two = Plateau(), Plateau()
    for i, value in enumerate(values):
        if i == at:
            two = Plateau(best=two.best, stale=two.stale)
        result = {"top1": value}
        assert one.observe(config, result) == two.observe(config, result)


@pytest.mark.parametrize("values", [{"patience": 0}, {"min_change": -1.0}])
def test_wrong_settings(values: dict[str, float]) -> None:
    with pytest.raises(FeedlineError, match=next(iter(values))):
        StopConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)]
)
def test_signals_and_their_statuses(number: signal.Signals, status: int) -> None:
    before = signal.getsignal(number)
    with StopSignal(World()) as stop:
        assert not stop.due()
        os.kill(os.getpid(), number)
        assert stop.due()
        assert Stopped(stop.agreed).status == status
    assert signal.getsignal(number) is before


@dataclass(frozen=True, slots=True)
class Fake(World):
    """Two ranks, of which the other one is slower: its newest figure counts."""

    size: int = 2
    asked: list[list[int]] = field(default_factory=list)
    slowest_ms: list[int] = field(default_factory=lambda: [100])

    def maxima(self, values: list[int]) -> list[int]:
        self.asked.append(values)
        return [values[0], max(values[1], self.slowest_ms[-1])]


def asked_at(stop: StopSignal, world: Fake, calls: int) -> list[int]:
    """Numbers of the calls, from 1, at which the ranks asked each other."""
    found = []
    for call in range(1, calls + 1):
        before = len(world.asked)
        assert not stop.due()
        if len(world.asked) > before:
            found.append(call)
    return found


def test_ranks_ask_each_other_about_once_a_second() -> None:
    world = Fake()
    stop = StopSignal(world)
    # More rarely from time to time, until every tenth call, of 100 ms each.
    assert asked_at(stop, world, 45) == [1, 3, 7, 15, 25, 35, 45]
    stop.received = signal.SIGUSR1
    assert [stop.due() for _ in range(11)] == [False] * 9 + [True] * 2


def test_slow_steps_after_a_fast_evaluation_are_asked_at_once() -> None:
    world = Fake()
    stop = StopSignal(world)
    world.slowest_ms.append(1)
    asked_at(stop, world, 300)
    world.slowest_ms.append(1000)
    stop.pace()
    assert asked_at(stop, world, 3) == [1, 2, 3]
