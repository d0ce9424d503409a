"""Where shards are: beside the index, or in an object store and a local cache of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from loader.cache import ShardCache, default_cache
from loader.order import Ids
from loader.reader import ShardReader
from shard.dataset import Dataset, Split

Steps = Callable[[int], Iterator[Ids]]


class Shards(Protocol):
    """Gives a reader the local files of shards."""

    reader: ShardReader
    wait_s: float

    def fingerprint(self) -> str:
        """Fingerprint that the dataset has now."""
        ...

    def begin(self, steps: Steps) -> None:
        """Learn what is read from now on: `steps(k)` gives the sample ids of each step, k epochs ahead.

        Raises:
            FeedlineError: it cannot be served.
        """
        ...

    def available(self, ids: Ids) -> bool:
        """Whether reading these samples does not wait for a transfer."""
        ...

    def done(self, step: int) -> None:
        """Learn that the step's batch has been handed out."""
        ...

    def close(self) -> None:
        """Let everything go."""
        ...


class LocalShards:
    """See `Shards`; files on this machine or a network mount."""

    def __init__(self, dataset: Dataset, split: Split) -> None:
        self._dataset = dataset
        self.reader = ShardReader(split)
        self.wait_s = 0.0

    def fingerprint(self) -> str:
        """See `Shards.fingerprint`."""
        return Dataset.open(self._dataset.root).fingerprint

    def begin(self, steps: Steps) -> None:
        """See `Shards.begin`: nothing to prepare."""

    def available(self, ids: Ids) -> bool:
        """See `Shards.available`."""
        return True

    def done(self, step: int) -> None:
        """See `Shards.done`."""

    def close(self) -> None:
        """See `Shards.close`."""
        self.reader.close()


def open_shards(
    dataset: Dataset,
    split: Split,
    cache: ShardCache | str | Path | None,
    local_world_size: int,
    timeout_s: float = 300.0,
) -> Shards:
    """Shards of a split, wherever they are.

    Raises:
        FeedlineError: the cache cannot be used.
    """
    if not any("://" in split.shard_url(i) for i in range(len(split.shards))):
        return LocalShards(dataset, split)
    from loader.remote import RemoteShards  # only here: the network's packages take a while to import

    if not isinstance(cache, ShardCache):
        cache = default_cache(cache)
    return RemoteShards(dataset, split, cache, local_world_size, timeout_s)
