"""What averaging gradients costs: the alpha-beta model, fitted to measured all-reduces, and simulated trainings.

A message of m bytes takes alpha + beta m seconds (Hockney, "The communication challenge for MPP", Parallel Computing
20, 1994). A ring all-reduce over n ranks is 2 (n - 1) messages of m / n bytes, one after the other:

    t(n, m) = 2 (n - 1) alpha + 2 (n - 1) / n m beta

(Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 19, 2005;
Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 69, 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

_BACKWARD = 2 / 3  # of a step: the backward pass has two matrix products for every one of the forward pass


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured all-reduce.

    Attributes:
        ranks: that took part.
        size_bytes: of the message.
        seconds: that it took.
    """

    ranks: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Network:
    """See the module.

    Attributes:
        alpha_s: seconds per message, whatever its size.
        beta_s: seconds per byte.
    """

    alpha_s: float
    beta_s: float

    def all_reduce(self, ranks: int, size_bytes: float) -> float:
        """Seconds of a ring all-reduce."""
        return 2 * (ranks - 1) * self.alpha_s + 2 * (ranks - 1) / ranks * size_bytes * self.beta_s


def fit_network(points: Sequence[Measured]) -> Network:
    """Least squares of the relative errors, both parameters at least 0.

    Args:
        points: of at least two sizes.

    Raises:
        ValueError: fewer.
    """
    if len({point.size_bytes for point in points}) < 2:
        raise ValueError("latency and bandwidth cannot be told apart from all-reduces of one size")
    ranks = np.array([point.ranks for point in points], float)
    sizes = np.array([point.size_bytes for point in points], float)
    seconds = np.array([point.seconds for point in points])
    terms = np.stack([2 * (ranks - 1), 2 * (ranks - 1) / ranks * sizes], 1) / seconds[:, None]
    scale = terms.max(0)  # one is of the order of 1, the other of a million
    found, _ = nnls(terms / scale, np.ones(len(points)))
    return Network(*(found / scale).tolist())


def worst_error(network: Network, points: Sequence[Measured]) -> float:
    """Greatest relative error of the model among measured all-reduces: 0.5 is half or one and a half times."""
    return max(abs(network.all_reduce(p.ranks, p.size_bytes) / p.seconds - 1) for p in points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A data-parallel training that is simulated.

    Attributes:
        name: for people.
        step_s: seconds of a step of one rank (or node) alone.
        batch_size: images in it.
        unit: ranks per count, which one step alone already has: 1, or those of a node.
        gradient_bytes: that are averaged in each step.
        network: between any two neighbours in the ring.
        strong: the global batch stays the same, and each rank's share of it shrinks.
    """

    name: str
    step_s: float
    batch_size: int
    unit: int = 1
    gradient_bytes: int
    network: Network
    strong: bool


@dataclass(frozen=True, slots=True)
class Simulated:
    """Speed-up of a scenario at a count; not measured.

    Attributes:
        count: ranks, or nodes.
        all_reduce_s: seconds of averaging in each step, beyond those that one alone needs.
        low: speed-up if nothing else happens meanwhile.
        high: speed-up if all of it may happen during the backward pass.
    """

    count: int
    all_reduce_s: float
    low: float
    high: float


def simulate(scenario: Scenario, count: int) -> Simulated:
    """Let `count` ranks train, each computing as fast as one alone, with only their all-reduces in the way."""
    compute_s = scenario.step_s / (count if scenario.strong else 1)
    traffic_s, already_s = (
        scenario.network.all_reduce(ranks, scenario.gradient_bytes)
        for ranks in (count * scenario.unit, scenario.unit)
    )
    traffic_s = max(0.0, traffic_s - already_s)
    apart = compute_s + traffic_s
    hidden = (1 - _BACKWARD) * compute_s + max(_BACKWARD * compute_s, traffic_s)
    work = scenario.step_s * (1 if scenario.strong else count)
    return Simulated(count, traffic_s, work / apart, work / hidden)
