"""What only a GPU can show: precisions, compile modes and what they forbid, NCCL, saving from its memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from train import checkpoint
from train.__main__ import main
from train.checkpoint import SaveConfig
from train.engine import Trainer
from train.run_folder import RunFolder
from train.saver import Saver

pytestmark = pytest.mark.gpu


def on_gpu(flags: list[str], run: Path, *more: str) -> list[str]:
    """The flags of a short training, for the GPU."""
    given = [*flags, "--device", "cuda", "--run-dir", str(run), *more]
    given.remove("cpu")
    given.remove("--device")
    return given


def accuracy(run: Path) -> float:
    return float(json.loads((run / "summary.json").read_text())["top1"])


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "fp32"])
def test_every_precision_learns_and_resumes(
    precision: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--precision", precision, "--no-compile", "--deterministic")
    assert main(on_gpu(flags, tmp_path / "whole", *more)) == 0
    assert accuracy(tmp_path / "whole") > 60
    train_step = Trainer.train_step

    def stop_in_the_middle(self: Trainer, batches: Any) -> None:
        train_step(self, batches)
        if self.state.step == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop_in_the_middle)
        assert main(on_gpu(flags, tmp_path / "parts", *more)) == 143
    assert main(on_gpu(flags, tmp_path / "parts", *more)) == 0
    whole, parts = (
        checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts")
    )
    assert whole["scaler"] == parts["scaler"]
    for name, value in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], value, msg=name)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_compile_modes_with_everything_that_keeps_outputs(
    mode: str, flags: list[str], tmp_path: Path
) -> None:
    more = ("--compile", "--compile-mode", mode, "--flip-tta", "--ema-decay", "0.9", "--mixup", "0.2")
    assert main(on_gpu(flags, tmp_path, *more)) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["recompiled_graphs"] == 0
    assert summary["top1"] > 60


def test_cuda_graphs_and_accumulation_are_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--compile", "--compile-mode", "reduce-overhead", "--accumulate", "2")
    assert main(on_gpu(flags, tmp_path, *more)) == 1
    assert "accumulate 2" in capsys.readouterr().err


def test_one_rank_of_nccl_with_synchronised_norms(flags: list[str], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "1",
        "-m",
        "train",
    ]
    more = ("--sync-bn", "--compress-grads", "--epochs", "1", "--no-compile")
    subprocess.run([*command, *on_gpu(flags, tmp_path, *more)], check=True, timeout=300)
    assert (tmp_path / "summary.json").exists()


def test_a_snapshot_is_of_the_moment_that_it_was_taken(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.prepare(fresh=True)
    device = torch.device("cuda")
    weights = torch.ones(1 << 24, device=device)
    saver = Saver(folder, SaveConfig(), device)
    saver.submit({"step": 1, "model": {"w": weights}}, best=False, before=lambda: None)
    weights.fill_(2)  # queued behind the copy
    saver.close()
    assert checkpoint.load(folder.last)["model"]["w"].eq(1).all()
