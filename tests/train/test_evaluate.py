from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F

from loader import Loader, ResizeCenterCrop
from shard.dataset import Dataset
from train.distributed import World
from train.evaluate import Result, evaluate
from train.model import Normalized

MEAN = STD = (0.5, 0.5, 0.5)


def model() -> Normalized:
    torch.manual_seed(3)
    net = Normalized(timm.create_model("test_efficientnet", num_classes=6), MEAN, STD).eval()
    with torch.no_grad():
        net.model.classifier.weight.mul_(30)  # else all logits are about equal
    return net


def loader(data: Path, batch_size: int, rank: int = 0, size: int = 1) -> Loader:
    transform = ResizeCenterCrop(size=24, resize=24)
    return Loader(data, "val", transform, batch_size=batch_size, rank=rank, world_size=size, threads=1)


def by_hand(data: Path, net: Normalized) -> Result:
    """The same figures from the tars' bytes, one image at a time, without Loader."""
    split = Dataset.open(data).split("val")
    ranks, losses = [], []
    for i in range(len(split)):
        with split.shard_path(int(split.shard[i])).open("rb") as file:
            file.seek(int(split.offset[i]))
            encoded = io.BytesIO(file.read(int(split.size[i])))
        pixels = np.array(Image.open(encoded).convert("RGB"))
        with torch.no_grad():
            logits = net(torch.from_numpy(pixels)[None])
        label = torch.tensor([int(split.label[i])])
        ranks.append(int((logits > logits[0, label]).sum()))
        losses.append(F.cross_entropy(logits, label).item())
    share = 100 / len(ranks)
    return Result(
        top1=sum(r < 1 for r in ranks) * share,
        top5=sum(r < 5 for r in ranks) * share,
        loss=sum(losses) / len(losses),
        samples=len(ranks),
    )


@pytest.mark.parametrize("batch_size", [1, 5, 42, 64])
def test_every_sample_counts_once_whatever_the_padding(dataset_dir: Path, batch_size: int) -> None:
    net = model()
    expected = by_hand(dataset_dir, net)
    assert 0 < expected.top1 < expected.top5 < 100  # or the comparison would say nothing
    with loader(dataset_dir, batch_size) as batches:
        for _ in range(2):  # and again from the same loader
            result = evaluate(net, batches, World())
            assert result is not None
            assert result.samples == expected.samples == 42
            assert (result.top1, result.top5) == pytest.approx((expected.top1, expected.top5))
            assert result.loss == pytest.approx(expected.loss, rel=1e-3)


def test_padding_that_gives_nan_does_not_count(dataset_dir: Path) -> None:
    def predict(images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 6)
        logits[images.flatten(1).sum(1) == 0] = float("nan")  # padding is black
        return logits

    with loader(dataset_dir, 64) as batches:
        result = evaluate(predict, batches, World())
    assert result is not None
    assert result.loss == pytest.approx(np.log(6))


def test_fewer_than_five_classes(dataset_dir: Path) -> None:
    with loader(dataset_dir, 42) as batches:
        batches.split.label[:] %= 2
        result = evaluate(lambda images: torch.rand(len(images), 2), batches, World())
    assert result is not None
    assert result.top5 == 100


def test_gives_up_when_asked(dataset_dir: Path) -> None:
    asked = []

    def stopping(step: int) -> bool:
        asked.append(step)
        return step == 2

    with loader(dataset_dir, 8) as batches:
        assert evaluate(lambda images: torch.zeros(len(images), 6), batches, World(), stopping) is None
        assert asked == [1, 2]
        whole = evaluate(lambda images: torch.zeros(len(images), 6), batches, World())
    assert whole is not None
    assert whole.samples == 42
