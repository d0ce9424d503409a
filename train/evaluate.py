"""Evaluation: every sample of the split counts exactly once, at any world size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F

from loader import Loader
from train.distributed import World

Predict = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Evaluation."""

    flip_tta: bool = False
    """Average the logits of every image and its mirror image."""
    before: Literal["auto", "knn", "probe", "none"] = "auto"
    """What --pretrained is worth before the training. auto: the head that came with it, where it is for the same
    classes, else both: knn, by the nearest neighbours among training samples; probe, by a linear one."""


def mirrored(predict: Predict) -> Predict:
    """Test-time augmentation: mean logits of images [B, H, W, 3] and of their mirror images."""
    return lambda images: (predict(images) + predict(images.flip(2))) / 2


def augmented(predict: Predict, config: EvalConfig) -> Predict:
    """`predict` with the test-time augmentation that `config` asks for."""
    return mirrored(predict) if config.flip_tta else predict


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an evaluation found.

    Attributes:
        top1: percent of the samples whose best guess is right.
        top5: percent with the right class among the best five (among all, where there are fewer).
        loss: mean cross-entropy, without label smoothing.
        samples: how many were counted.
    """

    top1: float
    top5: float
    loss: float
    samples: int

    def as_dict(self, prefix: str = "") -> dict[str, Any]:
        """Fields by name, with something before it."""
        return {prefix + name: value for name, value in asdict(self).items()}


@torch.no_grad()
def evaluate(
    predict: Predict,
    loader: Loader,
    world: World,
    stopping: Callable[[int], bool] = lambda step: False,
) -> Result | None:
    """Evaluate `predict` (uint8 [B, H, W, 3] to logits [B, classes]) on the whole split.

    Sums stay on the device and cross ranks once, at the end. Padding rows are masked.

    Args:
        predict: the model, in evaluation mode.
        loader: this rank's share of the split; it is rewound first.
        world: the ranks that share the split.
        stopping: asked after each batch, with its number from 1, whether to give up; ranks must agree.

    Returns:
        The result, the same on every rank; None if given up.
    """
    # MPS aside, float64 is everywhere, and counts in it are exact: [top-1, top-5, loss, samples].
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    loader.rewind()
    for step, batch in enumerate(loader, start=1):
        logits = predict(batch.images).float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        right = (best == batch.labels[:, None]) & batch.valid[:, None]
        loss = F.cross_entropy(logits, batch.labels, reduction="none")
        loss = torch.where(batch.valid, loss, 0)  # not a product: padding may give inf
        sums += torch.stack([right[:, 0].sum(), right.sum(), loss.double().sum(), batch.valid.sum()])
        if stopping(step):
            return None
    top1, top5, loss_sum, samples = world.sum_(sums).tolist()
    return Result(
        top1=100 * top1 / samples, top5=100 * top5 / samples, loss=loss_sum / samples, samples=int(samples)
    )


def eval_line(
    epoch: str, result: Result, took_s: float, averaged: Result | None = None, *, best: bool
) -> str:
    """Line of progress about an evaluation, and that of the averaged weights, in `took_s` seconds."""
    beside = f"averaged: top-1 {averaged.top1:.2f} %  " if averaged else ""
    return (
        f"epoch {epoch}  top-1 {result.top1:.2f} %  top-5 {result.top5:.2f} %  loss {result.loss:.4f}  {beside}"
        f"{result.samples} samples in {took_s:.1f} s{'  (best)' if best else ''}"
    )
