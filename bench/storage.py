"""The storage as a stage of `python -m bench doctor`: bytes on a disk or a mount, shards in a store."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from loader.cache import Held, ShardCache
from loader.order import Ids, Order
from loader.reader import Reads, ShardReader
from shard.dataset import Dataset, Split

_READERS, _FETCHES = 4, 4  # as in loader.loader and loader.remote
_READ_AHEAD = 4  # batches whose bytes are asked for, as the loader does
_TIMEOUT_S = 300.0


class Bytes:
    """Bytes from the storage in the order of training, by the loader's own reader and as far ahead.

    Args:
        split: local or mounted.
        order: of the samples.
        batch_size: images per step.
        threads: of the loader, which reads with at most four of them.
        begin: called before every epoch, such as `page_cache.evict`.
    """

    name, title, lead_in = "storage", "bytes from storage", _READ_AHEAD

    def __init__(
        self,
        split: Split,
        order: Order,
        batch_size: int,
        threads: int,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._reader = ShardReader(split)
        self._reads = Reads(split, self._reader, min(_READERS, threads))
        self._ids = endless_ids(split, order, batch_size, begin)
        self._pending = deque(self._reads.start(next(self._ids)) for _ in range(_READ_AHEAD))

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        self._pending.append(self._reads.start(next(self._ids)))
        read = self._pending.popleft()
        read.wait(_TIMEOUT_S)
        return len(read.encoded), sum(map(len, read.encoded))

    def synchronize(self) -> None:
        """What was read ahead is used up by the lead-in."""

    def close(self) -> None:
        """See `Stage.close`."""
        self._reads.close()
        self._reader.close()


class Fetch:
    """Whole shards from a store, as many at a time as the loader fetches, into a cache that is empty each time."""

    name, title, lead_in = "storage", "shards from the store", 0

    def __init__(self, dataset: Dataset, split: Split) -> None:
        self._split = split
        self._sums = [one["sha256"] for one in dataset.manifest["splits"][split.name]["shards"]]
        self._samples = np.bincount(split.shard, minlength=len(split.shards))
        self._pool = ThreadPoolExecutor(_FETCHES)
        self._next = 0

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        count = min(_FETCHES, len(self._sums))
        shards = [(self._next + i) % len(self._sums) for i in range(count)]
        self._next += count
        folder = Path(tempfile.mkdtemp(prefix="feedline-doctor-"))
        try:
            cache = ShardCache(folder)
            for held in self._pool.map(lambda shard: self._acquire(cache, shard), shards):
                held.release()
        finally:
            shutil.rmtree(folder)
        return int(self._samples[shards].sum()), sum(self._split.shard_bytes[shard] for shard in shards)

    def _acquire(self, cache: ShardCache, shard: int) -> Held:
        return cache.acquire(self._split.shard_url(shard), self._split.shard_bytes[shard], self._sums[shard])

    def synchronize(self) -> None:
        """Every step ends with its work done."""

    def close(self) -> None:
        """See `Stage.close`."""
        self._pool.shutdown()


def endless_ids(split: Split, order: Order, batch_size: int, begin: Callable[[], None]) -> Iterator[Ids]:
    """Ids [≤ batch_size] in the order of training, epoch after epoch."""
    epoch = 0
    while True:
        begin()
        ids = order.draws(split.shard, 0, epoch) % len(split)
        for first in range(0, len(ids), batch_size):
            yield ids[first : first + batch_size]
        epoch += 1
