"""Encoded images out of memory-mapped shards, by sample id, their checksums verified in the background."""

from __future__ import annotations

import mmap
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loader.threads import ThreadPool
from shard.dataset import Split
from shard.errors import FeedlineError

Encoded = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]

_HAS_MADVISE = hasattr(mmap.mmap, "madvise")  # not on Windows
_PAGE = mmap.PAGESIZE
# A mapping holds a file descriptor and 1,024 is the usual limit of those; images already handed out
# keep their own mapping alive, so dropping one here is always safe.
_MAX_OPEN_SHARDS = 256
_PATIENCE_S = 1.0  # with threads that read, when they are to end


class ShardReader:
    """Reads the encoded bytes of samples through memory maps, without copying.

    Not for use from several threads at once: one thread reads, the decoders share what it returns.

    Args:
        split: whose samples.
        locate: gives the local file of a shard, by its number; None: the split's own files.
    """

    def __init__(self, split: Split, locate: Callable[[int], Path] | None = None) -> None:
        self._split = split
        self._locate = locate or split.shard_path
        self._open: OrderedDict[int, mmap.mmap] = OrderedDict()

    def _map(self, shard: int) -> mmap.mmap:
        if (mapped := self._open.get(shard)) is not None:
            self._open.move_to_end(shard)
            return mapped
        path = self._locate(shard)
        try:
            with path.open("rb") as file:
                size_bytes = os.fstat(file.fileno()).st_size
                expected = self._split.shard_bytes[shard]
                if size_bytes != expected:
                    raise FeedlineError(
                        f"{path} has {size_bytes} bytes but dataset.json says {expected}; "
                        "run `python -m shard verify` and copy or build the shard again"
                    )
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FeedlineError(f"cannot open shard {path}: {error.strerror}") from error
        if _HAS_MADVISE:
            mapped.madvise(mmap.MADV_RANDOM)  # samples come shuffled: `announce` says what is next
        self._open[shard] = mapped
        if len(self._open) > _MAX_OPEN_SHARDS:
            self._open.popitem(last=False)
        return mapped

    def forget(self, shard: int) -> None:
        """Drop the mapping of a shard that is not needed for now."""
        self._open.pop(shard, None)

    def announce(self, ids: Ids) -> None:
        """Ask the kernel to read the bytes of these samples ahead (MADV_WILLNEED), and do not wait."""
        if not _HAS_MADVISE:
            return
        for i in ids.tolist():
            mapped = self._map(int(self._split.shard[i]))
            offset = int(self._split.offset[i])
            start = offset - offset % _PAGE
            mapped.madvise(mmap.MADV_WILLNEED, start, offset - start + int(self._split.size[i]))

    def read(self, ids: Ids) -> list[Encoded]:
        """Encoded images of `ids` [B]: a list of B read-only uint8 arrays [size], views into the maps."""
        split = self._split
        return [
            np.frombuffer(self._map(int(split.shard[i])), np.uint8, int(split.size[i]), int(split.offset[i]))
            for i in ids.tolist()
        ]

    def close(self) -> None:
        """Forget the mappings; memory is returned when the last image that points into it is gone."""
        self._open.clear()


@dataclass(slots=True)
class PendingRead:
    """Encoded images whose bytes are on their way from the disk."""

    encoded: list[Encoded]
    checks: list[Future[list[int]]]
    expected: npt.NDArray[np.uint32]

    def ready(self) -> bool:
        """Whether `wait` returns at once."""
        return all(check.done() for check in self.checks)

    def wait(self, timeout_s: float) -> dict[int, str]:
        """Wait until all bytes are there; reasons by row, of images that are not those of the index.

        Raises:
            FeedlineError: it took too long.
        """
        _, late = wait(self.checks, timeout_s)
        if late:
            raise FeedlineError(
                f"reading a batch took longer than timeout_s ({timeout_s:.0f} s): the storage hangs; "
                "mend it, or raise timeout_s"
            )
        found = [crc for check in self.checks for crc in check.result()]
        return {
            row: f"its bytes have the crc32 {crc:08x}, the index says {expected:08x}"
            for row, (crc, expected) in enumerate(zip(found, self.expected.tolist(), strict=True))
            if crc != expected
        }


class Reads:
    """Touches and checks bytes in threads, so that the disk is waited for before decoding, not in it."""

    def __init__(self, split: Split, reader: ShardReader, threads: int) -> None:
        self._split, self._reader, self._threads = split, reader, threads
        self._pool = ThreadPool(threads, "feedline-read", _PATIENCE_S)

    def start(self, ids: Ids) -> PendingRead:
        """Begin to read `ids` [B]; does not wait."""
        self._reader.announce(ids)
        encoded = self._reader.read(ids)
        step = max(1, -(-len(encoded) // self._threads))
        parts = [encoded[first : first + step] for first in range(0, len(encoded), step)]
        checks = [self._pool.submit(_checksums, part) for part in parts]
        return PendingRead(encoded, checks, self._split.crc32[ids])

    def close(self) -> None:
        """Stop the threads; one that hangs in its storage is left behind."""
        self._pool.close()


def _checksums(encoded: list[Encoded]) -> list[int]:
    return [zlib.crc32(one.data) for one in encoded]
