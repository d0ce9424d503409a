"""Everything that an evaluation finds, computed from the results per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shard.dataset import Split
from train.assess.figures import CalibrationBin, Slice, bootstrap_interval, calibration, percent, size_slices
from train.assess.other_labels import Against
from train.assess.per_class import (
    Matrix,
    Pair,
    Scores,
    averages,
    confused_pairs,
    confusion_matrix,
    scores_by_class,
)
from train.assess.samples import Samples

PAIRS = 20  # most confused ones that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The figures of one evaluation.

    Attributes:
        classes: class names by label.
        samples: how many were counted.
        undecoded: samples of the split that were not, because they do not decode.
        top1: percent.
        top5: percent.
        top1_interval: bootstrap interval at 95 %, percent.
        top5_interval: the same of top-5.
        loss: mean cross-entropy.
        ece: expected calibration error, 0 … 1.
        calibration: the bins that it is made of.
        scores: by label.
        averages: micro, macro and weighted.
        matrix: confusion matrix, int64 [classes, classes], true × predicted.
        pairs: the most confused classes.
        slices: by image size.
        other: accuracy against other labels, where there are some.
    """

    classes: tuple[str, ...]
    samples: int
    undecoded: int
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    top5_interval: tuple[float, float]
    loss: float
    ece: float
    calibration: list[CalibrationBin]
    scores: list[Scores]
    averages: dict[str, Scores]
    matrix: Matrix
    pairs: list[Pair]
    slices: list[Slice]
    other: Against | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: classes by name; the matrix has a file of its own."""
        values = {
            name: getattr(self, name)
            for name in (
                *("samples", "undecoded", "top1", "top5", "top1_interval", "top5_interval", "loss", "ece"),
            )
        }
        pairs = [
            asdict(p) | {"true": self.classes[p.true], "predicted": self.classes[p.predicted]}
            for p in self.pairs
        ]
        return {
            **values,
            "real": None if self.other is None else asdict(self.other),
            "averages": {name: asdict(s) for name, s in self.averages.items()},
            "classes": {name: asdict(s) for name, s in zip(self.classes, self.scores, strict=True)},
            "confused": pairs,
            "size_slices": [asdict(s) for s in self.slices],
            "calibration": [asdict(b) for b in self.calibration],
        }


def summarize(
    samples: Samples,
    classes: Sequence[str],
    *,
    shorter_side: npt.NDArray[np.integer],
    undecoded: int = 0,
    seed: int = 0,
    other: Against | None = None,
) -> Evaluation:
    """Compute every figure.

    Args:
        samples: N results.
        classes: class names by label.
        shorter_side: [N], pixels, of the stored images.
        undecoded: samples that are missing.
        seed: of the bootstrap.
        other: accuracy against other labels.
    """
    matrix = confusion_matrix(samples.labels, samples.top[:, 0], len(classes))
    right, right5 = samples.right, samples.right5
    error, bins = calibration(samples.probabilities[:, 0], right)
    return Evaluation(
        classes=tuple(classes),
        samples=len(samples),
        undecoded=undecoded,
        top1=percent(right),
        top5=percent(right5),
        top1_interval=bootstrap_interval(right, seed=seed),
        # Of five classes all count: that is no chance.
        top5_interval=bootstrap_interval(right5, seed=seed)
        if len(classes) > samples.top.shape[1]
        else (100.0, 100.0),
        loss=float(samples.losses.astype(np.float64).mean()),
        ece=error,
        calibration=bins,
        scores=scores_by_class(matrix),
        averages=averages(matrix),
        matrix=matrix,
        pairs=confused_pairs(matrix, PAIRS),
        slices=size_slices(shorter_side, right, right5, seed=seed),
        other=other,
    )


def shorter_sides(split: Split, samples: Samples) -> npt.NDArray[np.int32]:
    """Shorter side of each sample's stored image, pixels."""
    return np.minimum(split.width, split.height)[samples.ids]
