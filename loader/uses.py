"""When an epoch needs which shard: known before it starts, because the order is a pure function."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from loader.order import Ids
from shard.dataset import Split


class Use(NamedTuple):
    """The first and the last step of an epoch that read a shard."""

    shard: int
    first: int
    last: int


def uses(split: Split, steps: Iterable[Ids]) -> list[Use]:
    """Shards that these steps read, in the order of their first use."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, ids in enumerate(steps):
        for shard in np.unique(split.shard[ids]).tolist():
            first.setdefault(shard, step)
            last[shard] = step
    return [Use(shard, step, last[shard]) for shard, step in first.items()]


def peak_bytes(split: Split, plan: list[Use]) -> int:
    """Most bytes of shards that are between their first and their last use at the same time."""
    change: dict[int, int] = {}
    for shard, first, last in plan:
        change[first] = change.get(first, 0) + split.shard_bytes[shard]
        change[last + 1] = change.get(last + 1, 0) - split.shard_bytes[shard]
    return max(np.cumsum([change[step] for step in sorted(change)]).tolist(), default=0)
