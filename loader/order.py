"""Which sample stands where: the epoch's order, cut into global batches and dealt to ranks.

All functions are pure. An order is a sequence of *draws*, one per position of the epoch: draw d is sample
d % N in its (d // N)-th repetition. It is keyed by (seed, epoch) and does not know of ranks. Global batch k
of what is left of an epoch covers the positions [consumed + k*G, consumed + (k+1)*G), with
G = batch size per rank × world size. So a global batch depends on G only, never on how many ranks share it,
and any world size can continue from `consumed`.

Shuffled by "window", the epoch runs in lanes, interleaved position by position: every lane walks through a part
of the permuted shards and mixes the samples of `window` shards at a time. Ranks read whole lanes where the
numbers allow it, so that a node needs only the shards of its own lanes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loader.balance import balanced
from loader.keyed import Stream, hash_u64
from shard.errors import FeedlineError

Ids = npt.NDArray[np.int64]
SHUFFLES = ("none", "global", "window")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How an epoch is ordered; the same on all ranks and after any resume.

    Attributes:
        shuffle: "none": index order; "global": a true permutation; "window": the shards permuted, and the samples of a
            few mixed at a time, for slow disks and object stores.
        window: shards that a lane mixes at a time.
        lanes: of "window", parts of the dataset that an epoch walks through side by side.
        repeats: repeated augmentation (Hoffer et al., "Augment your batch", 2019; timm's `RepeatAugSampler`): every
            sample comes so many times in a row, with other augmentations, and an epoch holds the share of the
            samples that fits into its length.
        balance: of "global": how much more often rare classes come, 0 … 1; see `loader.balance`.
    """

    shuffle: str = "none"
    window: int = 4
    lanes: int = 8
    repeats: int = 1
    balance: float = 0.0

    def __post_init__(self) -> None:
        """Reject what is no order."""
        if self.shuffle not in SHUFFLES:
            raise FeedlineError(f"shuffle is {self.shuffle!r}; choose one of {', '.join(SHUFFLES)}")
        for name in ("window", "lanes", "repeats"):
            if getattr(self, name) < 1:
                raise FeedlineError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.balance <= 1:
            raise FeedlineError(f"balance is {self.balance}; it must lie in 0 … 1")
        if self.balance and (self.shuffle != "global" or self.repeats > 1):
            raise FeedlineError(
                f"balance is {self.balance}, which needs shuffle 'global' and repeats 1; they are {self.shuffle!r} and "
                f"{self.repeats}"
            )

    def draws(self, shard: npt.NDArray[np.int32], seed: int, epoch: int, label: Ids | None = None) -> Ids:
        """Order of an epoch.

        Args:
            shard: int32 [N], where the samples lie.
            seed: of the order.
            epoch: whose order.
            label: int64 [N], classes of the samples; needed with `balance`.

        Returns:
            int64 [N].
        """
        n = len(shard)
        if self.balance:
            if label is None:
                raise FeedlineError(f"balance is {self.balance}, which needs the samples' labels")
            drawn = balanced(label, self.balance, seed, epoch)
            keys = hash_u64(seed, epoch, drawn, Stream.SHUFFLE)
            return drawn[np.argsort(keys, kind="stable")]
        if self.shuffle == "window":
            lanes = _window_lanes(shard, seed, epoch, self.window, min(self.lanes, max(n, 1)))
        elif self.shuffle == "global":
            # ties, at 2**-64 odds a pair, stay in the order of their ids
            keys = hash_u64(seed, epoch, np.arange(n), Stream.SHUFFLE)
            lanes = [np.argsort(keys, kind="stable").astype(np.int64)]
        else:
            lanes = [np.arange(n, dtype=np.int64)]
        if self.repeats > 1:
            lanes = [_repeat(lane, self.repeats, n) for lane in lanes]
        if len(lanes) == 1:
            return lanes[0]
        draws = np.empty(n, np.int64)
        for i, lane in enumerate(lanes):
            draws[i :: len(lanes)] = lane
        return draws

    def rank_positions(
        self, n: int, consumed: int, step: int, batch_size: int, rank: int, world_size: int
    ) -> Ids:
        """Positions that `rank` reads in step `step` after `consumed`: int64 [≤ batch_size], fewer at the end."""
        global_batch = batch_size * world_size
        first = consumed + step * global_batch
        position = np.arange(first, min(first + global_batch, n))
        lanes = min(self.lanes, n)
        if self.shuffle != "window" or not _whole_lanes(lanes, world_size, consumed, global_batch):
            return position[rank::world_size]
        lane = position % lanes
        if lanes >= world_size:
            mine: npt.NDArray[np.bool_] = lane // (lanes // world_size) == rank
        else:
            share = world_size // lanes  # ranks per lane
            mine = lane * share + position // lanes % share == rank
        chosen: Ids = position[mine]
        return chosen


def _whole_lanes(lanes: int, world_size: int, consumed: int, global_batch: int) -> bool:
    """Whether dealing whole lanes to ranks gives every rank its share of every batch."""
    deals = lanes % world_size == 0 or world_size % lanes == 0
    return deals and consumed % lanes == 0 and global_batch % lanes == 0


def _repeat(lane: Ids, repeats: int, n: int) -> Ids:
    times = np.arange(len(lane)) % repeats
    return np.repeat(lane, repeats)[: len(lane)] + times * n


def _window_lanes(shard: npt.NDArray[np.int32], seed: int, epoch: int, window: int, lanes: int) -> list[Ids]:
    n = len(shard)
    keys = hash_u64(seed, epoch, np.arange(int(shard.max()) + 1), Stream.SHARDS)
    place = np.empty(len(keys), np.int64)
    place[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    walk = np.argsort(place[shard], kind="stable")  # samples, shard after shard of the permutation
    sizes = [n // lanes + (i < n % lanes) for i in range(lanes)]
    parts = np.split(walk, np.cumsum(sizes)[:-1])
    return [_shuffled_lane(part, i, shard, seed, epoch, window) for i, part in enumerate(parts)]


def _shuffled_lane(
    part: Ids, number: int, shard: npt.NDArray[np.int32], seed: int, epoch: int, window: int
) -> Ids:
    # Every other lane walks backwards: two lanes that share a shard at their border then need it at the same time.
    if number % 2:
        part = part[::-1]
    changes = np.cumsum(np.diff(shard[part], prepend=shard[part[:1]]) != 0)
    keys = hash_u64(seed, epoch, part, Stream.SHUFFLE)
    return part[np.lexsort((keys, changes // window))].astype(np.int64)


def num_steps(num_samples: int, consumed: int, global_batch: int, *, drop_last: bool) -> int:
    """Steps left in an epoch after `consumed` samples; the same on every rank by construction."""
    left = max(0, num_samples - consumed)
    return left // global_batch if drop_last else -(-left // global_batch)
