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
import torch.distributed as dist

from train import checkpoint
from train.__main__ import main
from train.build import make_step
from train.checkpoint import SaveConfig
from train.config import Config
from train.distributed import World
from train.engine import Trainer
from train.model import ModelConfig
from train.run_folder import RunFolder
from train.saver import Saver
from train.step import StepConfig
from train.synthetic import synthetic_batch

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


@pytest.mark.parametrize("compiled", [False, True])
def test_what_ranks_send_each_other_is_what_nccl_takes(compiled: bool) -> None:
    """In a group of one, as NCCL takes a GPU only once; the step is told that there is another rank."""
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    try:
        control = dist.new_group(backend="gloo")
        world = World(size=2, device=device, control=control)
        config = Config(
            model=ModelConfig(arch="test_efficientnet"),
            step=StepConfig(compile=compiled, compress_grads=True, sync_bn=True),
        )
        step = make_step(config, 4, world)
        before = [p.detach().clone() for p in step.net.parameters()]
        step.train()
        batch = synthetic_batch(8, 64, 4, device)
        for number in range(3):
            loss = step.forward_backward(batch.images, batch.labels, batch.valid)
            step.update(0.01, number + 1)
        assert world.sum_(loss.clone()) == loss
        assert loss.isfinite()
        assert any(not torch.equal(p, old) for p, old in zip(step.net.parameters(), before, strict=True))
        buffers = [b.clone() for b in step.net.buffers()]
        world.broadcast_(step.net.buffers())
        assert all(torch.equal(b, old) for b, old in zip(step.net.buffers(), buffers, strict=True))
        assert world.maxima([3, 1]) == [3, 1]
    finally:
        dist.destroy_process_group()


def test_torchrun_with_one_rank(flags: list[str], tmp_path: Path) -> None:
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
