"""Whether two networks differ in accuracy by more than chance, on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from shard.errors import FeedlineError

LEVEL = 0.05
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two networks, a and b, on the same samples.

    Attributes:
        a: name.
        b: name.
        samples: that both were evaluated on.
        top1_a: percent of these.
        top1_b: percent of these.
        only_a: samples that a alone has right.
        only_b: samples that b alone has right.
        interval: of top1_a - top1_b, 95 %, percentage points.
        p: of McNemar's exact test.
        adjusted_p: the same by Holm's method, for all pairs together.
    """

    a: str
    b: str
    samples: int
    top1_a: float
    top1_b: float
    only_a: int
    only_b: int
    interval: tuple[float, float]
    p: float
    adjusted_p: float

    method: ClassVar[str] = "paired bootstrap, McNemar's exact test"

    @property
    def scores(self) -> tuple[float, float]:
        """Of a and b, percent."""
        return self.top1_a, self.top1_b

    @property
    def significant(self) -> bool:
        """Whether chance alone would give such a difference in less than 5 % of cases."""
        return self.adjusted_p < LEVEL


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's exact test: were the samples that one alone has right a fair coin's?

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; exact, as
    Dietterich 1998 uses it for classifiers.

    Args:
        only_a: samples that a alone has right.
        only_b: samples that b alone has right.
    """
    if only_a + only_b == 0:
        return 1.0  # the two do not differ on any sample
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def paired_interval(only_a: int, only_b: int, samples: int, *, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval, 95 %, of the difference of two accuracies, percentage points.

    The samples are drawn in pairs: a drawn sample counts for both networks. Each counts +1, -1 or 0 to the difference,
    so how many of each a resample has is multinomial. These counts are drawn instead of the samples: the same
    distribution as `scipy.stats.bootstrap(paired=True)` at a thousandth of the work.

    Args:
        only_a: samples that a alone has right.
        only_b: samples that b alone has right.
        samples: in all.
        seed: of the resampling.
    """
    shares = np.array([only_a, only_b, samples - only_a - only_b]) / samples
    drawn = np.random.default_rng(seed).multinomial(samples, shares, RESAMPLES)
    low, high = np.percentile(100 * (drawn[:, 0] - drawn[:, 1]) / samples, [2.5, 97.5])
    return float(low), float(high)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests, so that any false alarm among them is as rare as the level says.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    found: list[float] = adjusted.tolist()
    return found


def in_common(
    names: tuple[str, str], a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Places of the samples that both of two runs decoded, in the ids [N] of the one and of the other.

    Raises:
        FeedlineError: there are none.
    """
    _, of_a, of_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    if not len(of_a):
        raise FeedlineError(f"{names[0]} and {names[1]} decoded no sample in common; evaluate both again")
    return of_a, of_b


def compare_all(right: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]) -> list[Pair]:
    """Test every pair.

    Args:
        right: by name, the ids of the samples [N] and whether the network has them right [N].
    """
    names = list(right)
    rows = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            of_a, of_b = in_common((a, b), right[a][0], right[b][0])
            hit_a, hit_b = right[a][1][of_a], right[b][1][of_b]
            only_a, only_b = int(np.count_nonzero(hit_a & ~hit_b)), int(np.count_nonzero(hit_b & ~hit_a))
            rows.append((a, b, len(of_a), int(hit_a.sum()), int(hit_b.sum()), only_a, only_b))
    p = [mcnemar(row[5], row[6]) for row in rows]
    return [
        Pair(
            a=a, b=b, samples=n, top1_a=100 * hits_a / n, top1_b=100 * hits_b / n, only_a=only_a, only_b=only_b,
            interval=paired_interval(only_a, only_b, n), p=plain, adjusted_p=adjusted,
        )
        for (a, b, n, hits_a, hits_b, only_a, only_b), plain, adjusted in zip(rows, p, holm(p), strict=True)
    ]  # fmt: skip
