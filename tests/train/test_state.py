"""Which evaluation is the best, and what a run that goes on remembers of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from train.config import Config, to_dict
from train.evaluate import AnyResult, Result
from train.multi_label import MultiLabelResult
from train.report.record import Record
from train.state import RunState, rejudge
from train.stop import StopConfig


def result(top1: float, loss: float) -> Result:
    return Result(top1=top1, top5=100.0, loss=loss, samples=10)


def judged(pairs: list[tuple[float, float]], config: StopConfig, state: RunState | None = None) -> RunState:
    state = state or RunState()
    for epoch, (top1, loss) in enumerate(pairs, start=state.best_epoch + 1):
        if not state.ended:
            state.judge(epoch, result(top1, loss), None, config)
    return state


@pytest.mark.parametrize(
    ("pairs", "best"),
    [
        ([(90, 0.5), (90, 0.4), (90, 0.4), (80, 0.1)], 2),
        ([(90, 0.5), (90, 0.6)], 1),
        ([(90, 0.5), (91, 0.9)], 2),
        ([(0, 2.0), (0, 1.9)], 2),
        ([(90, float("inf")), (90, 0.4)], 2),
        ([(90, 0.4), (90, float("nan"))], 1),
    ],
)
def test_of_equal_evaluations_the_one_with_the_lower_loss_is_the_best(
    pairs: list[tuple[float, float]], best: int
) -> None:
    state = judged(pairs, StopConfig())
    assert (state.best_epoch, state.best_top1, state.best_loss) == (best, *pairs[best - 1])
    lines = [{"epoch": n, **result(*pair).as_dict()} for n, pair in enumerate(pairs, start=1)]
    record = Record(
        root=Path(), config=Config(), train=[], evaluations=lines, before={}, summary={}, history=[]
    )
    assert record.best is lines[best - 1]  # the report's


def test_of_averaged_weights_their_own_loss_counts() -> None:
    state = RunState()
    results: list[tuple[AnyResult, AnyResult]] = [
        (result(90, 0.1), result(95, 0.5)),
        (result(90, 0.2), result(95, 0.4)),  # the weights have got worse, their average better
        (result(99, 0.0), result(95, 0.6)),
    ]
    improved = [state.judge(n, *pair, StopConfig()) for n, pair in enumerate(results, start=1)]
    assert improved == [True, True, False]


def test_multi_label_evaluations_too() -> None:
    state, stop = RunState(), StopConfig(stop_metric="map")
    losses = [0.3, 0.2, 0.25]
    improved = [
        state.judge(n, MultiLabelResult(map=100.0, loss=loss, samples=10), None, stop)
        for n, loss in enumerate(losses, start=1)
    ]
    assert improved == [True, True, False]


def test_patience_goes_by_the_metric_alone() -> None:
    state = judged([(90, 0.5), (90, 0.4), (90, 0.3), (99, 0.1)], StopConfig(patience=2))
    assert state.ended == "top1 has not improved on 90 in 2 evaluations"
    assert state.best_epoch == 3


def test_a_run_that_goes_on_compares_with_what_the_checkpoint_tells() -> None:
    saved = asdict(judged([(90, 0.5)], StopConfig()))
    assert judged([(90, 0.4)], StopConfig(), RunState(**saved)).best_epoch == 2
    assert judged([(90, 0.6)], StopConfig(), RunState(**saved)).best_epoch == 1
    del saved["best_loss"]  # a checkpoint that does not tell: it may have been lower
    assert judged([(90, 0.4)], StopConfig(), RunState(**saved)).best_epoch == 1
    assert judged([(91, 0.6)], StopConfig(), RunState(**saved)).best_epoch == 2


def ended_by(stop: StopConfig, now: StopConfig, *, averaged: bool = False) -> dict[str, Any]:
    """What is left of a checkpoint's run that went 90, 80 under `stop`, once it is judged by `now`."""
    state = RunState()
    for epoch, pair in enumerate([(90, 0.5), (80, 0.4)], start=1):
        plain = result(0, 9.0) if averaged else result(*pair)
        state.judge(epoch, plain, result(*pair) if averaged else None, stop)
    content = {**asdict(state), "config": to_dict(replace(Config(), stop=stop))}
    rejudge(content, now)
    return content


@pytest.mark.parametrize("averaged", [False, True])
def test_an_end_is_judged_anew_by_other_settings(averaged: bool) -> None:
    patient, top1 = StopConfig(patience=1), "top1 has not improved on 90 in 1 evaluations"
    for now, ended in (
        (patient, top1),
        (StopConfig(patience=1, min_change=5.0), top1),
        (StopConfig(patience=2), ""),
        (StopConfig(), ""),
        (StopConfig(target=80), "top1 80 reached the target 80"),
        (StopConfig(target=81), ""),
    ):
        content = ended_by(patient, now, averaged=averaged)
        assert content["ended"] == ended
        assert content["plateau"] == {"best": 90, "stale": 1}
    content = ended_by(
        StopConfig(patience=1, min_change=50.0, stop_mode="min"), StopConfig(patience=1, stop_mode="min")
    )
    assert (content["ended"], content["plateau"]) == ("", {"best": 80, "stale": 0})
    # What has not ended is judged at its next evaluation.
    assert ended_by(StopConfig(), patient, averaged=averaged)["ended"] == ""


@pytest.mark.parametrize("averaged", [False, True])
def test_another_metric_starts_its_patience_anew(averaged: bool) -> None:
    for now, best in (
        (StopConfig(patience=1, stop_metric="loss"), 0.4),
        (StopConfig(patience=1, stop_mode="min"), 80),
    ):
        content = ended_by(StopConfig(patience=1), now, averaged=averaged)
        assert (content["ended"], content["plateau"]) == ("", {"best": best, "stale": 0})
    # A smaller loss is no improvement here, and 80 % is none on a loss of 0.5: only the metric's name tells.
    lower = StopConfig(patience=1, stop_metric="loss", stop_mode="max")
    content = ended_by(lower, StopConfig(patience=1, stop_mode="min"), averaged=averaged)
    assert (content["ended"], content["plateau"]) == ("", {"best": 80, "stale": 0})
    kept = ended_by(StopConfig(patience=1), StopConfig(patience=3, stop_mode="max"))
    assert kept["plateau"] == {"best": 90, "stale": 1}  # the same as auto
