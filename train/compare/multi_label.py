"""Whether two networks differ in mAP by more than chance, on the same samples of a multi-label dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from shard.errors import FeedlineError
from train.compare.significance import LEVEL, holm, in_common
from train.compare.weighted_map import Bools, Floats, WeightedMap, exact

Ints = npt.NDArray[np.int64]

_MOST, _LEAST = 10_000, 1_000  # resamples of a pair
_BATCH = 2_000_000  # samples × resamples that are worked on at a time
_WORK = 300_000_000  # resamples × samples × classes of all pairs: a second or so


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


def resampled(of: WeightedMap, samples: int, resamples: int) -> Floats:
    """Percent mAP of bootstrap resamples: [resamples]; the same samples are drawn for every network.

    Samples are drawn with all their labels.

    Args:
        of: the network.
        samples: N.
        resamples: how many.
    """
    rng = np.random.default_rng(0)

    def drawn() -> Ints:
        return np.bincount(rng.integers(samples, size=samples), minlength=samples)

    return np.concatenate(
        [
            of(np.stack([drawn() for _ in range(size)], axis=1).astype(exact(samples)))
            for size in _batches(resamples, samples)
        ]
    )


def paired_interval(a: Floats, b: Floats) -> tuple[float, float]:
    """Percentile bootstrap interval, 95 %, of a's mAP less b's, percentage points, of both networks' `resampled`."""
    low, high = np.percentile(a - b, [2.5, 97.5])
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
    samples = len(targets)

    def differences(swapped: Bools) -> Floats:
        taken = np.concatenate([swapped, ~swapped], axis=1).T
        one, other = of.halves(np.ascontiguousarray(taken, exact(2 * samples)))
        return np.abs(one - other)

    seen = differences(np.zeros((1, samples), np.bool_))[0] - 1e-9  # which is rounding
    rng = np.random.default_rng(0)
    as_large = sum(
        int(np.count_nonzero(differences(rng.random((size, samples)) < 0.5) >= seen))
        for size in _batches(resamples, 2 * samples)
    )
    return (1 + as_large) / (1 + resamples)


def _batches(resamples: int, samples: int) -> Iterator[int]:
    """Resamples at a time: enough to go through memory in long rows, few enough to stay in a cache."""
    size = min(max(_BATCH // samples, 1), 128)
    for first in range(0, resamples, size):
        yield min(size, resamples - first)


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
    known: dict[tuple[str, bytes], tuple[float, Floats]] = {}
    for a, b in names:
        progress(f"testing {a} and {b}")
        found.append(_test(a, b, answers[a], answers[b], len(names), known))
    progress("")
    adjusted = holm([pair.p for pair in found])
    return [replace(pair, adjusted_p=p) for pair, p in zip(found, adjusted, strict=True)]


def _test(
    name_a: str,
    name_b: str,
    a: Answers,
    b: Answers,
    pairs: int,
    known: dict[tuple[str, bytes], tuple[float, Floats]],
) -> MapPair:
    """Test a pair; `known` keeps what holds for a network in other pairs, too, on the same samples."""
    of_a, of_b = in_common((name_a, name_b), a.ids, b.ids)
    targets, p_a, p_b = a.targets[of_a], a.probabilities[of_a], b.probabilities[of_b]
    if a.classes != b.classes or not np.array_equal(targets, b.targets[of_b]):
        raise FeedlineError(
            f"{name_a} and {name_b} name the classes of the same samples differently; evaluate both on a dataset "
            "with the class names of their training (`python -m shard build --classes FILE` sets them)"
        )
    samples, resamples = len(targets), resamples_of(targets.size, pairs)
    ids = a.ids[of_a].tobytes()
    for name, probabilities in ((name_a, p_a), (name_b, p_b)):
        if (name, ids) not in known:
            of = WeightedMap(targets, probabilities)
            once = float(of(np.ones((samples, 1), exact(samples)))[0])
            known[name, ids] = once, resampled(of, samples, resamples)
    (map_a, resampled_a), (map_b, resampled_b) = known[name_a, ids], known[name_b, ids]
    return MapPair(
        a=name_a, b=name_b, samples=samples, map_a=map_a, map_b=map_b,
        interval=paired_interval(resampled_a, resampled_b), resamples=resamples,
        p=(p := permutation_p(targets, p_a, p_b, resamples)), adjusted_p=p,
    )  # fmt: skip
