from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from train.distributed import World
from train.telemetry import LossWindow, Metrics, NonFiniteError, StepRecord, clock


def record(step: int) -> StepRecord:
    return StepRecord(
        step, 0.1 * step, [torch.tensor([10 * step, 10 * step + 1])], epoch=1, consumed=8 * step
    )


def test_losses_come_back_in_order_and_once() -> None:
    window = LossWindow(4, World())
    for step in (1, 2, 3):
        window.add(torch.tensor(float(step)), record(step))
    assert window.look() == [1, 2, 3]
    assert window.look() == []
    window.add(torch.tensor(4.0), record(4))
    assert window.look() == [4]


def test_losses_are_means_over_the_rows_that_are_valid() -> None:
    window = LossWindow(4, World())
    window.add(torch.tensor(3.0), replace(record(1), share=0.75))
    window.add(torch.tensor(0.0), replace(record(2), share=0.0))  # not a single one
    assert window.look() == [4.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_first_bad_step_is_named_with_its_samples(bad: float) -> None:
    window = LossWindow(4, World())
    for step, loss in enumerate([1.0, 2.0], start=1):
        window.add(torch.tensor(loss), record(step))
    window.look()
    for step, loss in enumerate([1.0, bad, float("nan")], start=3):
        window.add(torch.tensor(loss), record(step))
    with pytest.raises(NonFiniteError, match=r"step 4 .*40, 41;") as caught:
        window.look()
    assert caught.value.details == {
        "what": "the loss", "step": 4, "lr": 0.4, "sample_ids": [40, 41], "epoch": 1, "samples_consumed": 32,
    }  # fmt: skip


def test_weights_that_broke_after_the_last_loss() -> None:
    window = LossWindow(4, World())
    model = torch.nn.Linear(2, 2)
    window.add(torch.tensor(1.0), record(9))
    window.look()
    window.check_weights(model)
    with torch.no_grad():
        model.bias[1] = float("inf")
    with pytest.raises(NonFiniteError, match="a weight is not finite at step 9"):
        window.check_weights(model)


def test_metrics_of_a_resumed_run_lose_what_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path, 0, active=True)
    first.write(kind="train", step=1)
    kept = first.size()
    first.write(kind="train", step=2)
    first.close()
    with path.open("a") as file:
        file.write('{"step": 3, "lo')  # killed while writing
    second = Metrics(path, kept, active=True)
    second.write(kind="train", step=2, again=True)
    second.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"kind": "train", "step": 1},
        {"kind": "train", "step": 2, "again": True},
    ]


def test_clock() -> None:
    assert [clock(s) for s in (0.4, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]
