"""Mean average precision of many resamples of the same samples at once."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]


class WeightedMap:
    """mAP where each sample counts any number of times: what is sorted once serves all resamples.

    The same as `train.multi_label.average_precisions` of samples that are repeated as often, in percent: equal scores
    are one threshold, and a class without samples counts as 0.

    Shapes: N samples, C classes, R resamples, T thresholds of a class: the scores that samples of the class have.

    Args:
        targets: bool [N, C].
        scores: [N, C], the larger the likelier.
    """

    def __init__(self, targets: Bools, scores: Floats) -> None:
        self._count = targets.shape[1]
        columns = zip(targets.T, scores.T, strict=True)
        self._classes = [_Ranking(one, of) for one, of in columns if one.any()]

    def __call__(self, weights: Floats) -> Floats:
        """Percent [R], with how often each sample counts: whole numbers [N, R], at best of `exact`."""
        sums = np.zeros(weights.shape[1])
        for one in self._classes:
            sums += _precision(*one(weights))
        found: Floats = 100 * sums / self._count
        return found

    def halves(self, taken: Floats) -> tuple[Floats, Floats]:
        """Percent [R] of the samples that are taken, and of all others; `taken` is 1 or 0: [N, R]."""
        these, others = np.zeros((2, taken.shape[1]))
        for one in self._classes:
            found = one(taken)
            these += _precision(*found)
            others += _precision(*(whole - part for whole, part in zip(one.whole, found, strict=True)))
        return 100 * these / self._count, 100 * others / self._count


class _Ranking:
    """Samples of one class and all others, counted down to each threshold. See `WeightedMap`."""

    def __init__(self, target: Bools, scores: Floats) -> None:
        thresholds = np.unique(scores[target])
        # The highest threshold that a sample reaches, counted from above; what reaches none is of no account.
        reached = len(thresholds) - np.searchsorted(thresholds, scores, side="right")
        parts = (np.flatnonzero(part) for part in (reached < len(thresholds), target))
        kind, shape = exact(len(target)), (len(thresholds), len(target))
        self._all, self._own = (
            csr_array((np.ones(len(rows), kind), (reached[rows], rows)), shape) for rows in parts
        )
        self.whole = self(np.ones((len(target), 1), kind))

    def __call__(self, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Of the class at each threshold, of the class down to there, and all down to there: [T, R]."""
        own = self._own @ weights
        return own, _running_sums(own.copy()), _running_sums(self._all @ weights)


def exact(samples: int) -> type[np.floating]:
    """What counts so many samples without rounding: the smaller, the faster."""
    return np.float32 if samples < 2**24 else np.float64


def _precision(own: Floats, hits: Floats, above: Floats) -> Floats:
    """Average precision of a class [R], 0 … 1, of what `_Ranking` counts."""
    precision = np.divide(hits, np.maximum(above, 1), dtype=np.float64)
    found: Floats = np.einsum("tr,tr->r", own, precision) / np.maximum(hits[-1], 1)
    return found


def _running_sums(x: Floats) -> Floats:
    """As `np.cumsum(x, axis=0)`, in place: that goes through each column alone, this takes all in a few large steps."""
    block = math.isqrt(len(x)) + 1  # rows; first within all blocks at the same time, then from block to block
    for i in range(1, min(block, len(x))):
        rows = x[i::block]
        rows += x[i - 1 :: block][: len(rows)]
    for first in range(block, len(x), block):
        x[first : first + block] += x[first - 1]
    return x
