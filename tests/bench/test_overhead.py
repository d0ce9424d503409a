from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import pytest
import torch
from torch.nn import functional as F

from bench.__main__ import main
from bench.overhead import Ours, Reference, overhead
from bench.stages import endless_batches
from loader import Batch, Loader
from shard.dataset import Dataset
from train.distributed import World
from train.engine import make_step
from train.losses import LossConfig
from train.mix import MixConfig
from train.model import Normalized
from train.recipes import recipe
from train.step import StepConfig
from train.synthetic import synthetic_batch

CPU = torch.device("cpu")


@pytest.mark.parametrize("loss", [LossConfig(label_smoothing=0.1), LossConfig(loss="bce", bce_threshold=0.2)])
def test_both_do_the_same_training(loss: LossConfig) -> None:
    config = replace(recipe("digits"), loss=loss)
    batch = synthetic_batch(8, 32, 10, CPU)
    step = make_step(config, 10, World())
    step.net.train()
    net = copy.deepcopy(step.net)
    reference, ours = (
        Reference(net, config, batch, compiled=False),
        Ours(step, itertools.repeat(batch), replace(config, log_every=2)),
    )
    for _ in range(5):
        assert reference.step() == ours.step() == (8, 0)
    for a, b in zip(net.parameters(), step.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_ours_mixes_as_the_trainer_does_and_the_reference_as_timm_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(recipe("digits"), mix=MixConfig(mixup=0.2, cutmix=1.0, mix_until="1st"))
    batch = synthetic_batch(8, 32, 10, CPU)
    step = make_step(config, 10, World())
    step.net.train()
    reference = Reference(copy.deepcopy(step.net), config, batch, compiled=False)
    ours = Ours(step, itertools.repeat(batch), config)
    seen: list[torch.Tensor] = []
    forward = Normalized.forward

    def spy(self: Normalized, images: torch.Tensor, mix: torch.Tensor | None = None) -> torch.Tensor:
        assert mix is not None
        seen.append(mix)
        return forward(self, images, mix)

    monkeypatch.setattr(Normalized, "forward", spy)
    losses: list[float] = []
    monkeypatch.setattr(
        F, "cross_entropy", lambda x, y, **rest: losses.append(y.ndim) or (x - y).square().mean()
    )
    before = reference._images.clone()
    for _ in range(2):
        assert reference.step() == (8, 0)
    assert losses == [2, 2]  # soft targets
    assert torch.equal(before, reference._images)
    monkeypatch.undo()
    monkeypatch.setattr(Normalized, "forward", spy)
    for _ in range(2):
        assert ours.step() == (8, 0)
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("precision", get_args(get_type_hints(StepConfig)["precision"]))
def test_the_reference_knows_every_precision(precision: Literal["bf16", "fp16", "tf32", "fp32"]) -> None:
    config = recipe("digits")
    batch = synthetic_batch(2, 32, 10, CPU)
    net = make_step(config, 10, World()).net
    config = replace(config, step=replace(config.step, precision=precision))
    Reference(net, config, batch, compiled=False)


def test_tf32_on_a_cpu_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "overhead --recipe digits --precision tf32 --device cpu --out"
    assert main([*words.split(), str(tmp_path / "o.json")]) == 1
    assert "precision is 'tf32', which needs a GPU" in capsys.readouterr().err


def test_a_batch_too_small_for_batch_norm_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "overhead --model test_resnet --size 32 --batch-size 1 --device cpu --out"
    assert main([*words.split(), str(tmp_path / "o.json")]) == 1
    assert "give --batch-size 2 or more" in capsys.readouterr().err.splitlines()[-1]


def test_real_data_have_long_epochs(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def spy(loader: Loader) -> Iterator[Batch]:
        steps.append(len(loader))
        return endless_batches(loader)

    monkeypatch.setattr("bench.overhead.endless_batches", spy)
    config = recipe("digits")
    images = replace(config.input, batch_size=32, size=16, loader_backend="torch")
    config = replace(config, data=str(dataset.root), input=images)
    record = overhead(config, CPU, 1, 0.001, lambda text: None)
    assert steps[0] >= 1000  # 63 images are one batch
    assert "feed ratio (real / synthetic)" in record["ratios"]


def test_command(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.json"
    words = (
        f"overhead --data {dataset.root} --model test_efficientnet --size 32 --batch-size 8 --precision fp32"
    )
    assert (
        main([*words.split(), "--device", "cpu", "--repeats", "2", "--seconds", "0.05", "--out", str(out)])
        == 0
    )
    text = capsys.readouterr().out
    for name in (
        "plain PyTorch loop",
        "train's step",
        "training, real data",
        "ours / reference",
        "feed ratio",
    ):
        assert name in text
    record = json.loads(out.read_text())
    assert [len(stage["images_per_s"]) for stage in record["stages"]] == [2, 2, 2]
    assert record["ratios"]["ours / reference"] > 0
    words = f"overhead --data {dataset.root} --model test_resnet --size 32 --batch-size 64 --device cpu"
    assert main([*words.split(), "--out", str(out)]) == 1
    assert "has 63 samples, fewer than batch_size 64" in capsys.readouterr().err.splitlines()[-1]
    assert main(["overhead", "--seconds", "0"]) == 1
    assert "--seconds is 0.0" in capsys.readouterr().err
