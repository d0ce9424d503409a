"""The universal scalability law, fitted to measured speed-ups, and what it says about counts that were not measured.

    C(N) = N / (1 + sigma (N - 1) + kappa N (N - 1))

sigma is contention (what only one can do at a time, as in Amdahl's law), kappa is coherence (what every pair has to
agree on; it makes throughput fall beyond a peak). Source: Gunther, Guerrilla Capacity Planning, Springer 2007, chapters
4 to 6; Gunther, Puglia, Tomasette, "Hadoop superlinear scalability", ACM Queue 13(5), 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import median

import numpy as np
from scipy.optimize import least_squares, nnls

_SAMPLES = 1000
_PERCENT = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Law:
    """See the module.

    Attributes:
        sigma: contention, at least 0.
        kappa: coherence, at least 0.
    """

    sigma: float
    kappa: float

    def speedup(self, count: float) -> float:
        """Throughput of `count`, in units of that of one."""
        return count / (1 + self.sigma * (count - 1) + self.kappa * count * (count - 1))

    @property
    def peak(self) -> float:
        """Count at which throughput is greatest; infinite without coherence."""
        return sqrt(max(0.0, 1 - self.sigma) / self.kappa) if self.kappa > 0 else inf


def fit(speedups: Mapping[int, float]) -> Law:
    """Least squares of the relative errors, both parameters at least 0.

    Args:
        speedups: by count, in units of the throughput of one; at least two counts above 1.

    Raises:
        ValueError: fewer: two parameters cannot be told from one number.
    """
    counts = np.array([n for n in speedups if n > 1], float)
    if len(counts) < 2:
        raise ValueError("the law has two parameters; measure at least two counts above 1")
    measured = np.array([speedups[int(n)] for n in counts])

    # N / C - 1 is linear in both, which gives the start.
    start, _ = nnls(np.stack([counts - 1, counts * (counts - 1)], 1), np.maximum(counts / measured - 1, 0.0))

    def errors(x: np.ndarray[tuple[int], np.dtype[np.float64]]) -> object:
        return counts / (1 + x[0] * (counts - 1) + x[1] * counts * (counts - 1)) / measured - 1

    found = least_squares(errors, start, bounds=(0, np.inf), xtol=1e-12, ftol=1e-12, gtol=1e-12)
    return Law(float(found.x[0]), float(found.x[1]))


def extremes(speedups: Mapping[int, float]) -> tuple[Law, Law]:
    """The two laws through a single measured count: all of its loss is coherence, or all of it is contention.

    Every mixture of the two lies between them. A speed-up above the ideal counts as the ideal.

    Args:
        speedups: by count, with one count above 1.
    """
    (count,) = (n for n in speedups if n > 1)
    loss = max(0.0, count / speedups[count] - 1)
    return Law(0.0, loss / (count * (count - 1))), Law(loss / (count - 1), 0.0)


@dataclass(frozen=True, slots=True)
class Extrapolated:
    """Speed-up at a count, from the law.

    Attributes:
        count: of what is scaled.
        value: speed-up; None where two measured counts leave it open between two assumptions.
        low: lower end of the interval.
        high: upper end.
        confidence: of the interval, 0.95 at most; 0 from a single repeat, which says nothing about the others.
    """

    count: int
    value: float | None
    low: float
    high: float
    confidence: float


def speedups(rates: Mapping[int, Sequence[float]], chosen: Sequence[int] | None = None) -> dict[int, float]:
    """Median over repeats of the throughput in units of that of one, within each repeat.

    Args:
        rates: images/s by count, one for each repeat; with the count 1.
        chosen: repeats to take, one of them possibly several times; None: each once.
    """
    repeats = range(len(rates[1])) if chosen is None else chosen
    return {n: median(values[i] / rates[1][i] for i in repeats) for n, values in rates.items()}


def extrapolate(rates: Mapping[int, Sequence[float]], counts: Sequence[int]) -> list[Extrapolated]:
    """Speed-ups at `counts`, with 95 % intervals from a bootstrap over repeats (Efron, 1979).

    A bootstrap knows no values beyond those of the repeats, all of which n enclose a median with 1 - 2 ** (1 - n): the
    confidence that is told for few repeats.

    With a single count above 1 the interval reaches from the pessimistic to the optimistic law of `extremes`, and
    there is no value.
    """
    draw = np.random.default_rng(0)
    repeats = len(rates[1])
    samples = [speedups(rates, draw.integers(0, repeats, repeats).tolist()) for _ in range(_SAMPLES)]
    determined = sum(n > 1 for n in rates) > 1
    # Resampled repeats often coincide: every different outcome is fitted once.
    laws: dict[tuple[float, ...], tuple[Law, Law]] = {}
    for sample in samples:
        key = tuple(sample.values())
        if key not in laws:
            law = fit(sample) if determined else None
            laws[key] = (law, law) if law is not None else extremes(sample)
    pairs = [laws[tuple(sample.values())] for sample in samples]
    best = fit(speedups(rates)) if determined else None
    return [
        Extrapolated(
            n,
            None if best is None else best.speedup(n),
            float(np.percentile([low.speedup(n) for low, _ in pairs], _PERCENT[0])),
            float(np.percentile([high.speedup(n) for _, high in pairs], _PERCENT[1])),
            min(0.95, 1 - 2 ** (1 - repeats)),
        )
        for n in counts
    ]
