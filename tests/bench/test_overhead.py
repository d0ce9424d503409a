from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.overhead import Ours, Reference
from shard.dataset import Dataset
from train.distributed import World
from train.engine import make_step
from train.recipes import recipe
from train.synthetic import synthetic_batch

CPU = torch.device("cpu")


def test_both_do_the_same_training() -> None:
    config = recipe("digits")
    batch = synthetic_batch(8, 32, 10, CPU)
    step = make_step(config, 10, World())
    step.net.train()
    net = copy.deepcopy(step.net)
    reference, ours = Reference(net, config, batch, compiled=False), Ours(step, batch, log_every=2)
    for _ in range(5):
        assert reference.step() == ours.step() == (8, 0)
    for a, b in zip(net.parameters(), step.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


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
    assert main(["overhead", "--seconds", "0"]) == 1
    assert "--seconds is 0.0" in capsys.readouterr().err
