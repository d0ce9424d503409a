"""Encoded images out of shards, by sample id, read and verified in the background.

Plain reads, not memory maps: a shard that is cut short or a disk that fails is then an error that names itself, where a
map kills the process (SIGBUS); opening a shard costs a tenth of mapping it; and the copy, out of the page cache, takes
no longer than the page faults did.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loader.counters import Tracer
from loader.threads import ThreadPool
from shard.dataset import Split
from shard.errors import FeedlineError

Encoded = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]

_HAS_FADVISE = hasattr(os, "posix_fadvise")  # Linux
_MAX_OPEN_SHARDS = 256  # 1,024 descriptors are the usual limit
_PATIENCE_S = 1.0  # with threads that read, when they are to end


class _File:
    """An open shard; closed when nobody refers to it any more, a thread that reads from it included."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read(self, into: Encoded, offset: int) -> str | None:
        """Fill `into`; the reason if that is not possible."""
        view, done = into.data, 0
        try:
            while done < len(view):
                count = os.preadv(self.descriptor, [view[done:]], offset + done)
                if not count:
                    return f"its shard ends after {done} of its {len(view)} bytes"
                done += count
        except OSError as error:
            return f"its shard cannot be read: {error.strerror}"
        return None


class ShardReader:
    """Reads the encoded bytes of samples.

    Not for use from several threads at once: one thread asks, the threads of `Reads` wait for the disk.

    Args:
        split: whose samples.
        locate: gives the local file of a shard, by its number; None: the split's own files.
    """

    def __init__(self, split: Split, locate: Callable[[int], Path] | None = None) -> None:
        self._split = split
        self._locate = locate or split.shard_path
        self._open: OrderedDict[int, _File] = OrderedDict()

    def file(self, shard: int) -> _File:
        """Give the open file of a shard.

        Raises:
            FeedlineError: it cannot be opened, or is not of the size that the manifest says.
        """
        if (opened := self._open.get(shard)) is not None:
            self._open.move_to_end(shard)
            return opened
        path = self._locate(shard)
        try:
            opened = _File(path)
        except OSError as error:
            raise FeedlineError(f"cannot open shard {path}: {error.strerror}") from error
        size_bytes, expected = os.fstat(opened.descriptor).st_size, self._split.shard_bytes[shard]
        if size_bytes != expected:
            raise FeedlineError(
                f"{path} has {size_bytes} bytes but dataset.json says {expected}; "
                "run `python -m shard verify` and copy or build the shard again"
            )
        self._open[shard] = opened
        if len(self._open) > _MAX_OPEN_SHARDS:
            self._open.popitem(last=False)
        return opened

    def forget(self, shard: int) -> None:
        """Close a shard that is not needed for now."""
        self._open.pop(shard, None)

    def announce(self, ids: Ids) -> None:
        """Ask the kernel to read the bytes of these samples ahead, and do not wait."""
        if not _HAS_FADVISE:
            return
        split = self._split
        for i in ids.tolist():
            descriptor = self.file(int(split.shard[i])).descriptor
            os.posix_fadvise(descriptor, int(split.offset[i]), int(split.size[i]), os.POSIX_FADV_WILLNEED)

    def places(self, ids: Ids) -> list[tuple[_File, int, Encoded]]:
        """Where the samples `ids` [B] are, and memory for each: uint8 [size]."""
        split = self._split
        return [
            (self.file(int(split.shard[i])), int(split.offset[i]), np.empty(int(split.size[i]), np.uint8))
            for i in ids.tolist()
        ]

    def read(self, ids: Ids) -> list[Encoded]:
        """Encoded images of `ids` [B], read now: a list of B uint8 arrays [size].

        Raises:
            FeedlineError: one cannot be read.
        """
        places = self.places(ids)
        for sample, (file, offset, into) in zip(ids.tolist(), places, strict=True):
            if reason := file.read(into, offset):
                shard = self._split.shard_url(int(self._split.shard[sample]))
                raise FeedlineError(f"sample {sample} in {shard}: {reason}; run `python -m shard verify`")
        return [into for _, _, into in places]

    def close(self) -> None:
        """Close the shards."""
        self._open.clear()


@dataclass(slots=True)
class PendingRead:
    """Encoded images whose bytes are on their way from the disk.

    Attributes:
        encoded: uint8 arrays [size]; filled once `wait` has returned.
    """

    encoded: list[Encoded]
    checks: list[Future[list[str | None]]]

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
        reasons = [reason for check in self.checks for reason in check.result()]
        return {row: reason for row, reason in enumerate(reasons) if reason is not None}


class Reads:
    """Reads and checks bytes in threads, so that the disk is waited for before decoding, not in it."""

    def __init__(self, split: Split, reader: ShardReader, threads: int, tracer: Tracer | None = None) -> None:
        self._split, self._reader, self._threads = split, reader, threads
        self._tracer = tracer or Tracer()
        self._pool = ThreadPool(threads, "feedline-read", _PATIENCE_S)

    def start(self, ids: Ids) -> PendingRead:
        """Begin to read `ids` [B]; does not wait."""
        self._reader.announce(ids)
        work = list(zip(self._reader.places(ids), self._split.crc32[ids].tolist(), strict=True))
        step = max(1, -(-len(work) // self._threads))
        parts = [work[first : first + step] for first in range(0, len(work), step)]
        checks = [self._pool.submit(self._read, part) for part in parts]
        return PendingRead([into for (_, _, into), _ in work], checks)

    def _read(self, work: list[tuple[tuple[_File, int, Encoded], int]]) -> list[str | None]:
        with self._tracer.span("read", samples=len(work)):
            return [file.read(into, offset) or _unlike(into, crc) for (file, offset, into), crc in work]

    def close(self) -> None:
        """Stop the threads; one that hangs in its storage is left behind."""
        self._pool.close()


def _unlike(encoded: Encoded, expected: int) -> str | None:
    crc = zlib.crc32(encoded.data)
    return None if crc == expected else f"its bytes have the crc32 {crc:08x}, the index says {expected:08x}"
