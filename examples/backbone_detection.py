"""A network trained by feedline as the backbone of torchvision's Faster R-CNN and DeepLabV3.

    python examples/backbone_detection.py RUN --steps 3

takes the run's best weights, and trains both on random boxes and their masks. Put your own images and targets in the
place of `random_batch`: torchvision documents their form with `FasterRCNN`.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.transforms.functional import normalize

from shard.errors import FeedlineError
from train.pyramid import Pyramid, load_pyramid


class FpnBackbone(nn.Module):
    """C2 to C5 with a feature pyramid network on top, as torchvision's detectors want it."""

    def __init__(self, body: Pyramid, out_channels: int = 256) -> None:
        super().__init__()
        self.body, self.out_channels = body, out_channels
        self.fpn = FeaturePyramidNetwork(list(body.channels.values()), out_channels, LastLevelMaxPool())

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        maps: OrderedDict[str, torch.Tensor] = self.fpn(OrderedDict(self.body(images)))
        return maps


def faster_rcnn(run: Path, classes: int, side: int) -> FasterRCNN:
    """Faster R-CNN on the run's network; class 0 is the background."""
    body = load_pyramid(run)
    return FasterRCNN(
        FpnBackbone(body),
        classes,
        min_size=side,
        max_size=side,
        # The detector normalises: with what the weights were trained with.
        image_mean=body.mean,
        image_std=body.std,
        box_roi_pool=MultiScaleRoIAlign(list(body.channels), output_size=7, sampling_ratio=2),
    )


class DilatedBackbone(nn.Module):
    """C4 and C5 at a stride of 8, under the names that torchvision's segmentation wants."""

    def __init__(self, body: Pyramid) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.body(images)
        return {"out": maps["c5"], "aux": maps["c4"]}


def deeplab(run: Path, classes: int) -> DeepLabV3:
    """DeepLabV3 on the run's network, for normalised images."""
    body = load_pyramid(run, levels=(4, 5), output_stride=8)
    head = DeepLabHead(body.channels["c5"], classes)
    return DeepLabV3(DilatedBackbone(body), head, FCNHead(body.channels["c4"], classes))


def random_batch(count: int, side: int, classes: int) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Noise [count, 3, side, side] in 0 … 1, and two boxes in each image."""
    corners = torch.rand(count, 2, 2) * (side / 2)
    sizes = torch.rand(count, 2, 2) * (side / 3) + side / 8
    boxes = torch.cat([corners, corners + sizes], dim=2)
    labels = torch.randint(1, classes, (count, 2))
    return torch.rand(count, 3, side, side), [
        {"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)
    ]


def masks(targets: list[dict[str, torch.Tensor]], side: int) -> torch.Tensor:
    """Class of every pixel, int64 [B, side, side]: that of the last box that covers it, else 0."""
    found = torch.zeros(len(targets), side, side, dtype=torch.int64)
    for mask, target in zip(found, targets, strict=True):
        for (x0, y0, x1, y1), label in zip(target["boxes"].long().tolist(), target["labels"], strict=True):
            mask[y0:y1, x0:x1] = label
    return found


def train_detector(model: FasterRCNN, steps: int, side: int, classes: int) -> list[float]:
    """Losses of a few steps; backbone, neck and heads all learn."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9), []
    for _ in range(steps):
        images, targets = random_batch(2, side, classes)
        found: dict[str, Any] = model(list(images), targets)
        losses.append(_step(optimizer, sum(found.values())))
    return losses


def train_segmenter(model: DeepLabV3, steps: int, side: int, classes: int) -> list[float]:
    """Losses of a few steps."""
    body: Pyramid = model.backbone.body
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9), []
    for _ in range(steps):
        images, targets = random_batch(2, side, classes)
        found, wanted = model(normalize(images, body.mean, body.std)), masks(targets, side)
        losses.append(
            _step(
                optimizer, F.cross_entropy(found["out"], wanted) + 0.4 * F.cross_entropy(found["aux"], wanted)
            )
        )
    return losses


def _step(optimizer: torch.optim.Optimizer, loss: Any) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def main(argv: list[str] | None = None) -> None:
    """Train both for a few steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of `python -m train`")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--side", type=int, default=128, help="of the images, pixels")
    parser.add_argument("--classes", type=int, default=4, help="with the background")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    for name, losses in (
        ("Faster R-CNN", train_detector(
            faster_rcnn(options.run, options.classes, options.side), options.steps, options.side, options.classes)),
        ("DeepLabV3", train_segmenter(
            deeplab(options.run, options.classes), options.steps, options.side, options.classes)),
    ):  # fmt: skip
        print(f"{name}: losses {', '.join(f'{loss:.4f}' for loss in losses)}")


if __name__ == "__main__":
    try:
        main()
    except FeedlineError as error:
        raise SystemExit(f"error: {error}") from error
