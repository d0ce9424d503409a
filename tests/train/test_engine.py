"""Whole trainings in this process, through the command line's `main`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml

from loader.order import Order
from train import checkpoint
from train.__main__ import main
from train.engine import Trainer
from train.metrics import read_lines
from train.telemetry import MEASURED, LossWindow, StepRecord


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = checkpoint.load(run / "checkpoints" / "last.pt")["model"]
    return loaded


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def ids_of_steps(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """Sample ids of every step trained in this process, by step."""
    seen: dict[int, list[int]] = {}
    add = LossWindow.add

    def spy(self: LossWindow, loss: torch.Tensor, record: StepRecord) -> None:
        seen[record.step] = torch.cat(record.ids).tolist()
        add(self, loss, record)

    monkeypatch.setattr(LossWindow, "add", spy)
    return seen


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do `action` in the middle of training, right after `step`."""
    train_step = Trainer.train_step

    def wrapped(self: Trainer, batches: Any) -> None:
        train_step(self, batches)
        if self.state.step == step:
            action()

    monkeypatch.setattr(Trainer, "train_step", wrapped)


def test_run_folder_of_a_training(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], ids_of_steps: dict[int, list[int]]
) -> None:
    run = tmp_path / "run"
    assert main([*flags, "--run-dir", str(run)]) == 0
    out = capsys.readouterr().out

    train = [m for m in metrics(run) if m["kind"] == "train"]
    assert [m["step"] for m in train] == list(range(4, 46, 4))
    assert [m["epoch"] for m in train] == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    evals = [m for m in metrics(run) if m["kind"] == "eval"]
    assert [(m["epoch"], m["step"], m["samples"]) for m in evals] == [(1, 15, 42), (2, 30, 42), (3, 45, 42)]
    assert train[-1]["loss"] < train[0]["loss"]
    assert checkpoint.load(run / "checkpoints" / "best.pt")["images"]["exif"] == "strip"  # as the dataset

    for epoch in range(3):
        ids = [i for step in range(15 * epoch + 1, 15 * epoch + 16) for i in ids_of_steps[step]]
        assert ids == Order(shuffle="global").draws(np.zeros(120, np.int32), 0, epoch).tolist()

    summary = json.loads((run / "summary.json").read_text())
    assert summary["top1"] == evals[-1]["top1"]
    assert summary["best_top1"] == max(m["top1"] for m in evals)
    assert f"top-1 {summary['top1']:.2f} %" in out

    best = checkpoint.load(run / "checkpoints" / "best.pt")
    assert best["best_epoch"] == best["epoch"] == summary["best_epoch"]
    assert yaml.safe_load((run / "config.yaml").read_text())["optim"]["lr"] == 0.02

    # A finished run is told, not trained again.
    before = (run / "metrics.jsonl").read_bytes()
    assert main(["--config", str(run / "config.yaml")]) == 0
    assert "finished" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before

    # From its configuration file it gives the same again.
    assert main(["--config", str(run / "config.yaml"), "--run-dir", str(tmp_path / "again")]) == 0
    assert same(weights(run), weights(tmp_path / "again"))
    assert metrics(run) == metrics(tmp_path / "again")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--log-every", "16"], [(1, 15), (2, 30), (3, 45)]),  # an epoch has 15 steps
        (["--log-every", "10", "--duration", "8st", "--warmup", "0ep"], [(1, 8)]),
    ],
)
def test_short_epochs_end_with_a_line_of_metrics(
    flags: list[str], tmp_path: Path, more: list[str], expected: list[tuple[int, int]]
) -> None:
    assert main([*flags, *more, "--run-dir", str(tmp_path)]) == 0
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert [(line["epoch"], line["step"]) for line in lines] == expected


def test_checkpoint_keys_are_the_bare_models(flags: list[str], tmp_path: Path) -> None:
    assert main([*flags, "--epochs", "1", "--run-dir", str(tmp_path)]) == 0
    bare = timm.create_model("test_efficientnet", num_classes=6)
    bare.load_state_dict(weights(tmp_path), strict=True)
    assert main([*flags, "--epochs", "1", "--run-dir", str(tmp_path / "b"), "--lr", "0", "--pretrained",
                 str(tmp_path / "checkpoints" / "last.pt")]) == 0  # fmt: skip
    parameters = {name for name, _ in bare.named_parameters()}
    tuned = weights(tmp_path / "b")
    assert all(torch.equal(v, tuned[k]) for k, v in weights(tmp_path).items() if k in parameters)


@pytest.fixture(scope="module")
def whole(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an undisturbed training."""
    run = tmp_path_factory.mktemp("whole")
    assert main([*flags, "--run-dir", str(run)]) == 0
    return run


def test_sigterm_saves_and_resume_is_exact(
    flags: list[str],
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main([*flags, "--run-dir", str(run)]) == 143
    assert checkpoint.load(run / "checkpoints" / "last.pt")["step"] == 6
    assert not (run / "summary.json").exists()
    assert main([*flags, "--run-dir", str(run)]) == 0
    assert "going on from" in capsys.readouterr().err
    assert same(weights(whole), weights(run))
    assert metrics(whole) == metrics(run)


@pytest.mark.parametrize("step", [15, 16])  # at the end of an epoch, before and after its evaluation
def test_stop_at_the_end_of_an_epoch(
    step: int, whole: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main([*flags, "--run-dir", str(run)]) == 143
    assert main([*flags, "--run-dir", str(run)]) == 0
    assert same(weights(whole), weights(run))
    assert metrics(whole) == metrics(run)


def test_stop_during_evaluation(
    whole: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "stopped"
    evaluate = Trainer.evaluate

    def interrupted(self: Trainer) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", interrupted)
        assert main([*flags, "--run-dir", str(run)]) == 143
    assert [m["kind"] for m in metrics(run)] == ["train"] * 3
    assert main([*flags, "--run-dir", str(run)]) == 0
    assert same(weights(whole), weights(run))
    assert metrics(whole) == metrics(run)


def test_ctrl_c_with_accumulation(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids_of_steps: dict[int, list[int]]
) -> None:
    """Micro-batches of 2, global batch 8; going on with another accumulation gives the same samples."""
    flags = [*flags, "--epochs", "1", "--run-dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main([*flags, "--accumulate", "4"]) == 130
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["loader"]["samples_consumed"] == 48
    assert main([*flags, "--accumulate", "2"]) == 0
    assert sorted(ids_of_steps) == list(range(1, 16))
    ids = [i for step in range(1, 16) for i in ids_of_steps[step]]
    assert ids == Order(shuffle="global").draws(np.zeros(120, np.int32), 0, 0).tolist()


def test_resume_refuses_another_configuration_and_never_starts_afresh(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*flags, "--run-dir", str(tmp_path)]
    assert main([*flags, "--epochs", "1"]) == 0
    assert main([*flags, "--epochs", "2", "--lr", "0.01"]) == 1
    err = capsys.readouterr().err
    assert "lr: 0.02 → 0.01; duration: 1ep → 2ep" in err
    assert "--resume never" in err
    assert main([*flags, "--epochs", "2", "--lr", "0.01", "--resume", "never"]) == 0
    assert [m["step"] for m in metrics(tmp_path) if m["kind"] == "eval"] == [15, 30]
    assert main([*flags, "--resume", str(tmp_path / "none.pt")]) == 1


def test_a_loss_that_is_not_finite_stops_the_run_with_its_samples(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], ids_of_steps: dict[int, list[int]]
) -> None:
    assert main([*flags, "--lr", "1e30", "--run-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    found = json.loads((tmp_path / "nonfinite.json").read_text())
    assert f"the loss is not finite at step {found['step']} (lr " in err
    assert found["sample_ids"] == ids_of_steps[found["step"]]
    assert 1 < found["step"] <= 4
    assert not list((tmp_path / "checkpoints").iterdir())
    assert metrics(tmp_path) == []


def test_weights_that_are_not_finite_are_never_saved(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_step = Trainer.train_step

    def poison(self: Trainer, batches: Any) -> None:
        train_step(self, batches)
        if self.state.step == 15:  # after the epoch's last loss was computed
            with torch.no_grad():
                next(self.step.net.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Trainer, "train_step", poison)
    assert main([*flags, "--run-dir", str(tmp_path)]) == 1
    assert "a weight is not finite at step 15" in capsys.readouterr().err
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--mixup 0.2 --cutmix 1 --loss bce --bce-threshold 0.2 --ema-decay 0.9 --clip-grad 1",
        "--mixup 0.2 --mix-mode elem --freeze conv_stem --freeze-for 5st --clip-grad 0.1 --clip-mode agc",
    ],
)
def test_steps_never_wait_for_the_device(
    more: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two lines of metrics no tensor is read by the host: `item` and `tolist` are what would."""
    reads: list[int] = []
    current = [0]
    train_step = Trainer.train_step

    def watched(self: Trainer, batches: Any) -> None:
        current[0] = self.state.step + 1
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
                original = getattr(torch.Tensor, name)

                def spy(tensor: torch.Tensor, original: Any = original) -> Any:
                    if tensor.is_floating_point() or tensor.dtype == torch.bool:
                        reads.append(current[0])
                    return original(tensor)

                patch.setattr(torch.Tensor, name, spy)
            train_step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", watched)
    assert main([*flags, "--epochs", "1", *more.split(), "--run-dir", str(tmp_path)]) == 0
    assert current == [15]
    assert reads == []
