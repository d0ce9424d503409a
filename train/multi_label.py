"""Evaluation on multi-label datasets, where a sample is of several classes or of none.

The network has a logit for each class. Evaluations go by the mean over the classes of average precision (mAP).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from loader import Batch
from shard.labels import Label
from train.distributed import World

THRESHOLD = 0.5  # of the probability, from which on a class counts as predicted


def average_precision(targets: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """Average precision of one class, 0 … 1: the sum over thresholds of precision times the gain in recall.

    As scikit-learn's `average_precision_score`: not interpolated, equal scores are one threshold, and 0 where no sample
    is of the class.

    Args:
        targets: [N], whether a sample is of the class.
        scores: [N], the larger the likelier.
    """
    total = np.count_nonzero(targets)
    if not total:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(targets[order])[ends]
    return float(np.sum(np.diff(hits, prepend=0) * (hits / (ends + 1))) / total)


def average_precisions(
    targets: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Average precision of every class, float64 [classes], of targets and scores [N, classes]."""
    columns = zip(targets.T, scores.T, strict=True)
    return np.array([average_precision(target, score) for target, score in columns])


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabelResult:
    """What an evaluation found.

    Attributes:
        map: mean over the classes of average precision, percent.
        loss: mean binary cross-entropy over samples and classes, without label smoothing.
        samples: how many were counted.
    """

    metric: ClassVar[str] = "map"
    map: float
    loss: float
    samples: int

    @property
    def score(self) -> float:
        """What decides which evaluation is the best; larger is better."""
        return self.map

    def text(self) -> str:
        """Figures for people."""
        return f"mAP {self.map:.2f} %  loss {self.loss:.4f}"

    def as_dict(self, prefix: str = "") -> dict[str, Any]:
        """Fields by name, with something before it."""
        return {prefix + name: value for name, value in asdict(self).items()}


class MultiLabelTally:
    """Gathers an evaluation's batches. What has been seen stays on the device until the end.

    Args:
        world: the ranks that share the split.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._loss = torch.zeros((), dtype=torch.float64, device=world.device)

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Take in a batch; logits float32 [B, classes]."""
        losses = binary_losses(logits, batch.labels)
        self._loss += torch.where(batch.valid, losses, 0).double().sum()
        # Logits, not probabilities: of sure ones many are the same number, and tell no order.
        self._parts.append((logits, batch.labels > 0, batch.valid))

    def result(self) -> MultiLabelResult:
        """The same on every rank. Collective."""
        scores, targets, valid = (
            torch.cat(column).cpu().numpy() for column in zip(*self._parts, strict=True)
        )
        ranks = self._world.gather((scores[valid], targets[valid]))
        scores, targets = (np.concatenate(column) for column in zip(*ranks, strict=True))
        loss = float(self._world.sum_(self._loss)) / len(scores)
        precisions = average_precisions(targets, scores)
        return MultiLabelResult(map=100 * float(precisions.mean()), loss=loss, samples=len(scores))


def binary_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of each sample, [B], of logits and multi-hot targets [B, classes]."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def label_lists(labels: torch.Tensor) -> list[Label]:
    """A batch's labels, int64 [B] or multi-hot [B, classes], as numbers or lists of them."""
    if labels.ndim == 1:
        return list(labels.tolist())
    return [row.nonzero().flatten().tolist() for row in labels]
