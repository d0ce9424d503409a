"""Figures of a set of samples: accuracy with its interval, and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 15  # of Guo et al.
RESAMPLES = 10_000


def percent(right: npt.NDArray[np.bool_]) -> float:
    """Share of the samples [N] that are right, in percent."""
    return 100 * float(np.count_nonzero(right)) / len(right)


def bootstrap_interval(
    right: npt.NDArray[np.bool_], *, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the accuracy, in percent.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13. Each of 10,000 resamples draws
    N samples with replacement; how many of them are right is binomial with the observed share, so that count is drawn
    instead of the samples: the same distribution at a millionth of the work. Where all samples are right, or none, all
    resamples are alike, which says nothing; there it is the exact interval of Clopper and Pearson, "The use of
    confidence or fiducial limits illustrated in the case of the binomial", 1934.

    Args:
        right: bool [N].
        seed: of the resampling.
        level: share of the resamples that lie inside.
    """
    share, tail = np.count_nonzero(right) / len(right), 50 * (1 - level)
    if share in (0, 1):
        margin = 100 - 100 * (tail / 100) ** (1 / len(right))
        return (0.0, margin) if share == 0 else (100 - margin, 100.0)
    counts = np.random.default_rng(seed).binomial(len(right), share, RESAMPLES)
    low, high = np.percentile(100 * counts / len(right), [tail, 100 - tail])
    return float(low), float(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """The samples whose confidence lies in one interval.

    Attributes:
        low: of the confidence, excluded.
        high: of the confidence, included.
        samples: how many.
        confidence: mean probability of the likeliest class, 0 … 1; None of no samples.
        accuracy: share that is right, 0 … 1; None of no samples.
    """

    low: float
    high: float
    samples: int
    confidence: float | None
    accuracy: float | None


def calibration(
    confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]
) -> tuple[float, list[CalibrationBin]]:
    """Expected calibration error, 0 … 1, and the bins that it is made of.

    Source: Guo et al., "On calibration of modern neural networks", 2017: M = 15 bins ((m - 1)/M, m/M] of equal width;
    the mean over samples of |accuracy - mean confidence| of their bin.

    Args:
        confidence: [N], probability of the likeliest class.
        right: bool [N], whether that is the label.
    """
    edges = np.arange(BINS + 1) / BINS
    where = np.digitize(confidence, edges[1:-1], right=True)
    counts = np.bincount(where, minlength=BINS)
    confidences = np.bincount(where, confidence.astype(np.float64), BINS)
    hits = np.bincount(where, right, BINS)
    error = float(np.abs(hits - confidences).sum() / len(right))
    return error, [
        CalibrationBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            samples=int(n),
            confidence=float(confidences[i] / n) if n else None,
            accuracy=float(hits[i] / n) if n else None,
        )
        for i, n in enumerate(counts)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Accuracy of the samples whose shorter side lies between two bounds.

    Attributes:
        shorter_side: least and greatest among them, pixels.
        samples: how many.
        top1: percent.
        top5: percent.
        interval: of top-1, percent.
    """

    shorter_side: tuple[int, int]
    samples: int
    top1: float
    top5: float
    interval: tuple[float, float]


def size_slices(
    shorter_side: npt.NDArray[np.integer],
    right: npt.NDArray[np.bool_],
    right5: npt.NDArray[np.bool_],
    *,
    seed: int,
) -> list[Slice]:
    """Accuracy by quarters of the image sizes, the smallest first; equal sizes stay together.

    Args:
        shorter_side: [N], pixels, of the images as they are stored.
        right: bool [N].
        right5: bool [N].
        seed: of the intervals.
    """
    edges = np.unique(np.quantile(shorter_side, [0.25, 0.5, 0.75], method="higher"))
    where = np.digitize(shorter_side, edges)
    return [
        Slice(
            shorter_side=(int(shorter_side[here].min()), int(shorter_side[here].max())),
            samples=int(np.count_nonzero(here)),
            top1=percent(right[here]),
            top5=percent(right5[here]),
            interval=bootstrap_interval(right[here], seed=seed),
        )
        for here in (where == part for part in np.unique(where))
    ]
