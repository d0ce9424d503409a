"""Whether two networks differ in mAP by more than chance, on the same samples of a multi-label dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from shard.errors import FeedlineError
from train.compare.significance import LEVEL, holm, in_common

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]

_MOST, _LEAST = 10_000, 1_000  # resamples of a pair
_WORK = 300_000_000  # resamples × samples × classes of all pairs: ten seconds or so


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a network said to N samples.

    Attributes:
        ids: int64 [N], of the samples.
        classes: names, C.
        targets: bool [N, C], whether a sample is of a class.
        probabilities: float32 [N, C], of the classes.
    """

    ids: Ints
    classes: tuple[str, ...]
    targets: Bools
    probabilities: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPair:
    """Two networks, a and b, on the same samples.

    Attributes:
        a: name.
        b: name.
        samples: that both were evaluated on.
        map_a: percent, by the probabilities.
        map_b: percent, by the probabilities.
        interval: of map_a - map_b, 95 %, percentage points.
        resamples: of the interval, and of the test.
        p: of the permutation test.
        adjusted_p: the same by Holm's method, for all pairs together.
    """

    a: str
    b: str
    samples: int
    map_a: float
    map_b: float
    interval: tuple[float, float]
    resamples: int
    p: float
    adjusted_p: float

    @property
    def scores(self) -> tuple[float, float]:
        """Of a and b, percent."""
        return self.map_a, self.map_b

    @property
    def significant(self) -> bool:
        """Whether chance alone would give such a difference in less than 5 % of cases."""
        return self.adjusted_p < LEVEL

    @property
    def method(self) -> str:
        """What found interval and p."""
        return f"paired bootstrap and permutation test, {self.resamples:,} resamples each"


class WeightedMap:
    """mAP where each sample counts any number of times: what is sorted once serves all resamples.

    The same as `train.multi_label.average_precisions` of samples that are repeated as often, in percent: equal scores
    are one threshold, and a class without samples counts as 0.

    Args:
        targets: bool [N, C].
        scores: [N, C], the larger the likelier.
    """

    def __init__(self, targets: Bools, scores: Floats) -> None:
        self._classes = targets.shape[1]
        order = np.argsort(-scores, axis=0, kind="stable")
        ranked = np.take_along_axis(scores, order, axis=0).T  # [C, N]
        last = np.ones(ranked.shape, np.bool_)  # of its equals
        last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
        ends = np.flatnonzero(last)
        # All classes stand in one row, one after the other; a positive is a sample that is of the class there.
        self._samples = order.T.ravel()
        places = np.flatnonzero(np.take_along_axis(targets, order, axis=0).T)
        self._positives = self._samples[places]
        self._of = places // len(targets)  # class of each positive
        self._ends = ends[np.searchsorted(ends, places)]  # last place with the positive's score
        self._last = np.searchsorted(places, self._ends, side="right") - 1  # last positive up to there

    def __call__(self, weights: Ints) -> float:
        """Percent, with how often each sample counts: [N]."""
        above = np.cumsum(weights[self._samples])[self._ends] - self._of * weights.sum()
        own = weights[self._positives]
        totals = np.bincount(self._of, own, self._classes)
        hits = np.cumsum(own)[self._last] - (np.cumsum(totals) - totals)[self._of]
        sums = np.bincount(self._of, own * hits / np.maximum(above, 1), self._classes)
        return float(100 * np.mean(sums / np.maximum(totals, 1)))


def paired_interval(a: WeightedMap, b: WeightedMap, samples: int, resamples: int) -> tuple[float, float]:
    """Percentile bootstrap interval, 95 %, of a's mAP less b's, percentage points.

    Samples are drawn with all their labels, and count for both networks.

    Args:
        a: of the one network.
        b: of the other.
        samples: N.
        resamples: how many.
    """
    rng = np.random.default_rng(0)
    found = np.empty(resamples)
    for i in range(resamples):
        drawn = np.bincount(rng.integers(samples, size=samples), minlength=samples)
        found[i] = a(drawn) - b(drawn)
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def permutation_p(targets: Bools, a: Floats, b: Floats, resamples: int) -> float:
    """Two-sided p-value: how often is mAP as different if each sample's answers are a coin's to swap?

    What is swapped are ranks within a network's class: a network that is surer of everything, in the same order, is no
    other one. Source: Venkatraman and Begg, "A distribution-free procedure for comparing receiver operating
    characteristic curves from a paired experiment", 1996, here for all classes of a sample together. The networks as
    they are count as one of the permutations, so that p is never 0 (Phipson and Smyth 2010).

    Args:
        targets: bool [N, C].
        a: scores [N, C] of the one network.
        b: of the other.
        resamples: permutations, drawn at random.
    """
    ranks = np.concatenate([rankdata(a, axis=0), rankdata(b, axis=0)])
    of = WeightedMap(np.concatenate([targets, targets]), ranks)  # a network has half of all answers

    def difference(swapped: Bools) -> float:
        of_b = np.concatenate([swapped, ~swapped]).astype(np.int64)
        return abs(of(1 - of_b) - of(of_b))

    seen = difference(np.zeros(len(targets), np.bool_)) - 1e-9  # which is rounding
    rng = np.random.default_rng(0)
    as_large = sum(difference(rng.random(len(targets)) < 0.5) >= seen for _ in range(resamples))
    return (1 + as_large) / (1 + resamples)


def resamples_of(work: int, pairs: int) -> int:
    """How many resamples each pair gets: enough that Holm's method can find any difference significant.

    Args:
        work: samples × classes of a pair.
        pairs: how many are tested.
    """
    least = max(_LEAST, round(2 * pairs / LEVEL))  # the smallest p, times the pairs, is then half the level
    return max(least, min(_MOST, _WORK // (work * pairs)))


def compare_maps(
    answers: dict[str, Answers], progress: Callable[[str], None] = lambda text: None
) -> list[MapPair]:
    """Test every pair.

    Args:
        answers: by name.
        progress: told which pair is at work, and "" at the end.

    Raises:
        FeedlineError: two networks name the classes of the same samples differently.
    """
    names, found = list(combinations(answers, 2)), []
    for a, b in names:
        progress(f"testing {a} and {b}")
        found.append(_test(a, b, answers[a], answers[b], len(names)))
    progress("")
    adjusted = holm([pair.p for pair in found])
    return [replace(pair, adjusted_p=p) for pair, p in zip(found, adjusted, strict=True)]


def _test(name_a: str, name_b: str, a: Answers, b: Answers, pairs: int) -> MapPair:
    of_a, of_b = in_common((name_a, name_b), a.ids, b.ids)
    targets, p_a, p_b = a.targets[of_a], a.probabilities[of_a], b.probabilities[of_b]
    if a.classes != b.classes or not np.array_equal(targets, b.targets[of_b]):
        raise FeedlineError(
            f"{name_a} and {name_b} name the classes of the same samples differently; evaluate both on a dataset "
            "with the class names of their training (`python -m shard build --classes FILE` sets them)"
        )
    map_a, map_b = WeightedMap(targets, p_a), WeightedMap(targets, p_b)
    once, resamples = np.ones(len(targets), np.int64), resamples_of(targets.size, pairs)
    p = permutation_p(targets, p_a, p_b, resamples)
    return MapPair(
        a=name_a, b=name_b, samples=len(targets), map_a=map_a(once), map_b=map_b(once),
        interval=paired_interval(map_a, map_b, len(targets), resamples), resamples=resamples, p=p, adjusted_p=p,
    )  # fmt: skip
