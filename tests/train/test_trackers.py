from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shard.errors import FeedlineError
from train.__main__ import main
from train.metrics import Metrics
from train.outbox import BackgroundTracker
from train.stop import Stopped
from train.telemetry import TelemetryConfig
from train.trackers import TRACKERS, TensorBoard, numbers

LINE = {"kind": "train", "step": 4, "loss": 0.5, "lr": 0.1, "images_per_s": None, "time_s": {"data": 0.25}}


def test_numbers_of_nested_values() -> None:
    assert numbers({**LINE, "ok": True, "name": "x"}, "train/") == {
        "train/step": 4.0, "train/loss": 0.5, "train/lr": 0.1, "train/time_s/data": 0.25,
    }  # fmt: skip


def test_unknown_tracker_names_the_nearest() -> None:
    assert TelemetryConfig(trackers="tensorboard, mlflow").names == ["tensorboard", "mlflow"]
    assert TelemetryConfig().names == []
    with pytest.raises(FeedlineError, match="trackers has 'tensorbord'; did you mean 'tensorboard'"):
        TelemetryConfig(trackers="tensorbord")


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_a_tracker_that_is_not_installed_is_one_line(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FeedlineError, match=r"--trackers needs .*pip install 'feedline\[trackers\]'"):
        TRACKERS[name](tmp_path, {}, 0)


def read_tensorboard(root: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(root / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_forgets_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    for start, first in ((0, 1), (2, 3)):
        tracker = TensorBoard(tmp_path, {"lr": 0.1}, start)
        for step in range(first, 5):
            tracker.log({"train/loss": float(10 * start + step)}, step)
        tracker.close()
    assert read_tensorboard(tmp_path) == {"train/loss": [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_resumed_run_keeps_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    names, began = [], time.time()
    for step in (0, 4):
        tracker = TRACKERS[name](tmp_path, {"lr": 0.1, "data": tmp_path}, step)
        tracker.log({"train/loss": 0.5}, step + 1)
        tracker.close()
        names.append(json.loads((tmp_path / "trackers.json").read_text())[name])
    assert names[0] == names[1]
    files = list(
        tmp_path.glob("wandb/offline-run-*/*.wandb" if name == "wandb" else "mlruns/*/*/metrics/train/loss")
    )
    assert files
    if name == "mlflow":
        rows = [line.split() for line in files[0].read_text().splitlines()]
        assert [row[1:] for row in rows] == [["0.5", "1"], ["0.5", "5"]]
        assert all(int(row[0]) >= 1000 * int(began) for row in rows)  # milliseconds


def test_a_training_with_a_tracker_and_a_profile(flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--epochs", "1", "--trackers", "tensorboard", "--profile", "--profile-steps", "2"]
    assert main([*flags, *more, "--run-dir", str(run)]) == 0
    seen = read_tensorboard(run)
    lines: list[dict[str, Any]] = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [(m["step"], m["loss"]) for m in lines if m["kind"] == "train"]
    assert [step for step, _ in seen["train/loss"]] == [step for step, _ in losses]
    assert [value for _, value in seen["train/loss"]] == pytest.approx([value for _, value in losses])
    assert seen["eval/top1"][0][1] == pytest.approx(lines[-1]["top1"])
    assert (run / "profile" / "trace.json.gz").stat().st_size > 1000
    train = [m for m in lines if m["kind"] == "train"][-1]
    assert set(train["time_s"]) >= {"data", "forward_backward", "optimiser"}
    assert train["peak_memory_gib"] > 0
    assert "mfu" not in train  # no GPU, no peak, no figure


def test_trackers_are_told_on_rank_0_only(tmp_path: Path) -> None:
    class Spy:
        def __init__(self) -> None:
            self.told: list[tuple[dict[str, float], int]] = []

        def log(self, values: Any, step: int) -> None:
            self.told.append((dict(values), step))

        def close(self, outcome: str = "finished") -> None:
            self.told.append(({}, -1))

    spy = Spy()
    metrics = Metrics(tmp_path / "m.jsonl", 0, active=True, trackers=[spy])
    metrics.write(**LINE)
    metrics.close()
    assert spy.told == [
        ({"train/loss": 0.5, "train/lr": 0.1, "train/time_s/data": 0.25}, 4), ({}, -1),
    ]  # fmt: skip


class Broken:
    """A tracker that fails at its second line."""

    def __init__(self, *args: Any) -> None:
        self.told = 0
        self.closed: list[str] = []

    def log(self, values: Any, step: int) -> None:
        self.told += 1
        if self.told == 2:
            raise ConnectionError("no route to host\nand a lot more")

    def close(self, outcome: str = "finished") -> None:
        self.closed.append(outcome)


def test_a_tracker_that_fails_does_not_end_the_training(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken()
    monkeypatch.setitem(TRACKERS, "mlflow", lambda *args: broken)
    assert main([*flags, "--epochs", "1", "--trackers", "mlflow", "--run-dir", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert err.count("warning: tracker mlflow failed: no route to host; it gets nothing more") == 1
    assert broken.told == 2
    assert broken.closed == ["finished"]
    assert (tmp_path / "checkpoints" / "last.pt").exists()


def test_a_tracker_that_cannot_be_started_is_one_line(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main([*flags, "--trackers", "mlflow", "--run-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert re.search(
        r"^error: --trackers: mlflow cannot be started: .*; see to it, or leave mlflow out$", err, re.M
    )
    assert "Traceback" not in err


def test_a_tracker_that_hangs_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    class Hanging(Broken):
        def log(self, values: Any, step: int) -> None:
            free.wait()

    free = threading.Event()
    tracker = BackgroundTracker("wandb", Hanging(), waiting=2, close_s=0.05)
    for step in range(9):
        tracker.log({"loss": 1.0}, step)
    assert capsys.readouterr().err.count("tracker wandb takes nothing any more: 2 lines of metrics wait") == 1
    tracker.close()
    free.set()
    assert capsys.readouterr().err == ""  # it was said


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "finished"), (Stopped(15), "stopped"), (ValueError("x"), "failed")]
)
def test_trackers_hear_how_the_run_ended(error: Exception | None, outcome: str, tmp_path: Path) -> None:
    spy = Broken()
    metrics = Metrics(tmp_path / "m.jsonl", 0, active=True, trackers=[BackgroundTracker("x", spy)])
    with pytest.raises(type(error)) if error else contextlib.nullcontext(), metrics:
        if error:
            raise error
    assert spy.closed == [outcome]


def test_mlflow_runs_that_fail_are_not_called_finished(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    for step, outcome, status in (
        (0, "failed", "FAILED"),
        (4, "stopped", "KILLED"),
        (8, "finished", "FINISHED"),
    ):
        tracker = TRACKERS["mlflow"](tmp_path, {}, step)
        client = MlflowClient(tracking_uri=(tmp_path / "mlruns").resolve().as_uri())
        run = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
        assert client.get_run(run).info.status == "RUNNING"
        tracker.close(outcome)  # type: ignore[arg-type]
        assert client.get_run(run).info.status == status
