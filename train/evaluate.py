"""Evaluation: every sample of the split counts exactly once, at any world size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional as F

from loader import Batch, Loader
from train.distributed import World
from train.multi_label import MultiLabelResult, MultiLabelTally

Predict = Callable[[torch.Tensor], torch.Tensor]
METRICS = {"top1": "top-1", "map": "mAP"}  # what decides which evaluation is the best, in percent


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

    metric: ClassVar[str] = "top1"
    top1: float
    top5: float
    loss: float
    samples: int

    @property
    def score(self) -> float:
        """What decides which evaluation is the best; larger is better."""
        return self.top1

    def text(self) -> str:
        """Figures for people."""
        return f"top-1 {self.top1:.2f} %  top-5 {self.top5:.2f} %  loss {self.loss:.4f}"

    def as_dict(self, prefix: str = "") -> dict[str, Any]:
        """Fields by name, with something before it."""
        return {prefix + name: value for name, value in asdict(self).items()}


AnyResult = Result | MultiLabelResult


class Tally:
    """Sums up an evaluation's batches. Sums stay on the device and cross ranks once, at the end.

    Args:
        world: the ranks that share the split.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        # MPS aside, float64 is everywhere, and counts in it are exact: [top-1, top-5, loss, samples].
        self._sums = torch.zeros(4, dtype=torch.float64, device=world.device)

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Take in a batch; logits float32 [B, classes]."""
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        right = (best == batch.labels[:, None]) & batch.valid[:, None]
        loss = F.cross_entropy(logits, batch.labels, reduction="none")
        loss = torch.where(batch.valid, loss, 0)  # not a product: padding may give inf
        self._sums += torch.stack([right[:, 0].sum(), right.sum(), loss.double().sum(), batch.valid.sum()])

    def result(self) -> Result:
        """The same on every rank. Collective."""
        top1, top5, loss_sum, samples = self._world.sum_(self._sums).tolist()
        return Result(
            top1=100 * top1 / samples,
            top5=100 * top5 / samples,
            loss=loss_sum / samples,
            samples=int(samples),
        )


@torch.no_grad()
def evaluate(
    predict: Predict,
    loader: Loader,
    world: World,
    stopping: Callable[[int], bool] = lambda step: False,
) -> AnyResult | None:
    """Evaluate `predict` (uint8 [B, H, W, 3] to logits [B, classes]) on the whole split.

    Padding rows are masked.

    Args:
        predict: the model, in evaluation mode.
        loader: this rank's share of the split; it is rewound first.
        world: the ranks that share the split.
        stopping: asked after each batch, with its number from 1, whether to give up; ranks must agree.

    Returns:
        The result, the same on every rank; None if given up.
    """
    tally = MultiLabelTally(world) if loader.dataset.multi_label else Tally(world)
    loader.rewind()
    for step, batch in enumerate(loader, start=1):
        tally.add(predict(batch.images).float(), batch)
        if stopping(step):
            return None
    return tally.result()


def metric_of(line: Mapping[str, Any]) -> str:
    """Name of the metric that decides, of a line of metrics, a summary, or what was measured before a training."""
    return "map" if "map" in line else "top1"


def rank(score: float, loss: float) -> tuple[float, float]:
    """What orders evaluations, the best one last: by the metric that decides, equal ones by their loss."""
    return score, -loss


def eval_line(
    epoch: str, result: AnyResult, took_s: float, averaged: AnyResult | None = None, *, best: bool
) -> str:
    """Line of progress about an evaluation, and that of the averaged weights, in `took_s` seconds."""
    beside = f"averaged: {METRICS[averaged.metric]} {averaged.score:.2f} %  " if averaged else ""
    return (
        f"epoch {epoch}  {result.text()}  {beside}{result.samples} samples in {took_s:.1f} s"
        f"{'  (best)' if best else ''}"
    )
