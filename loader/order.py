"""Which sample stands where: the epoch's order, cut into global batches and dealt to ranks.

All functions are pure. The order is a true global permutation keyed by (seed, epoch). Global batch k
of what is left of an epoch covers the positions [consumed + k*G, consumed + (k+1)*G), with
G = batch size per rank × world size, and position p goes to rank p % world size. So a global batch
depends on G only, never on how many ranks share it, and any world size can continue from `consumed`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loader.keyed import Stream, hash_u64

Ids = npt.NDArray[np.int64]


def epoch_order(num_samples: int, seed: int, epoch: int, *, shuffle: bool) -> Ids:
    """Sample ids in the order of this epoch: int64 [num_samples].

    With `shuffle`, ids sorted by their keyed hash (ties, at 2**-64 odds a pair, by id); without, 0, 1, 2 ….
    """
    ids = np.arange(num_samples, dtype=np.int64)
    if not shuffle:
        return ids
    return np.argsort(hash_u64(seed, epoch, ids, Stream.SHUFFLE), kind="stable").astype(np.int64)


def num_steps(num_samples: int, consumed: int, global_batch: int, *, drop_last: bool) -> int:
    """Steps left in an epoch after `consumed` samples; the same on every rank by construction."""
    left = max(0, num_samples - consumed)
    return left // global_batch if drop_last else -(-left // global_batch)


def rank_ids(order: Ids, consumed: int, step: int, batch_size: int, rank: int, world_size: int) -> Ids:
    """Ids that `rank` reads in step `step` after `consumed`: int64 [n], n ≤ batch_size (fewer at the end)."""
    first = consumed + step * batch_size * world_size
    last = first + batch_size * world_size
    return order[first:last][rank::world_size]
