"""Which runs are worth their cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.compare.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A cost to hold accuracy against.

    Attributes:
        label: with its unit.
        of: a run's; None where it has not recorded it.
        less: whether less is better.
    """

    label: str
    of: Callable[[Run], float | None]
    less: bool = True


COSTS = {
    "time": Cost(
        label="training time, minutes", of=lambda run: None if run.time_s is None else run.time_s / 60
    ),
    "energy": Cost(label="energy of the GPUs, kJ", of=lambda run: run.energy_kj),
    "flops": Cost(label="forward pass, GFLOPs per image", of=lambda run: run.gflops),
    "parameters": Cost(
        label="parameters, millions", of=lambda run: None if run.parameters is None else run.parameters / 1e6
    ),
    "speed": Cost(label="images/s while training", of=lambda run: run.images_per_s, less=False),
}


def pareto_front(costs: npt.ArrayLike, values: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which points no other one beats: bool [N].

    A point is beaten by one that costs no more and is worth no less, and is better in one of the two; of equal points
    none beats the other.

    Args:
        costs: [N], less is better.
        values: [N], more is better.
    """
    cost, value = np.asarray(costs, np.float64), np.asarray(values, np.float64)
    no_worse = (cost[None] <= cost[:, None]) & (value[None] >= value[:, None])  # [N, other]
    better = (cost[None] < cost[:, None]) | (value[None] > value[:, None])
    return np.asarray(~(no_worse & better).any(axis=1))


def on_front(runs: list[Run], cost: Cost) -> list[bool]:
    """Which runs are on the front of accuracy against a cost: of the finished ones that have recorded both."""
    points = {
        at: (found if cost.less else -found, run.score)
        for at, run in enumerate(runs)
        if run.finished and run.score is not None and (found := cost.of(run)) is not None
    }
    if not points:
        return [False] * len(runs)
    costs, values = zip(*points.values(), strict=True)
    best = dict(zip(points, pareto_front(costs, values).tolist(), strict=True))
    return [best.get(at, False) for at in range(len(runs))]
