"""What of a dataset the kernel holds in memory, and making it forget."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

from shard.dataset import Split
from shard.errors import FeedlineError

HOT = "hot"
_STAYED = 0.01  # share of a split from which on it is not cold


def can_evict() -> bool:
    """Whether this system lets one take files out of the page cache (Linux does)."""
    return hasattr(os, "posix_fadvise")


def evict(split: Split) -> None:
    """Drop the split's shards from the page cache, so that the next read comes from the storage.

    What a process has mapped stays, and so does what lies in a file system in memory: `resident_share` tells.

    Raises:
        FeedlineError: this system has no `posix_fadvise`, or a shard is not a local file.
    """
    if not can_evict():
        raise FeedlineError("a cold page cache needs posix_fadvise, which this system does not have")
    for path in map(split.shard_path, range(len(split.shards))):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise FeedlineError(f"cannot open shard {path}, to evict it: {error.strerror}") from error
        try:
            os.fsync(descriptor)  # pages that are not written yet would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


class Eviction:
    """Evicts a split as often as it is called, and keeps account of what stayed.

    Attributes:
        stayed: greatest share of the split that was still in memory after one, 0 … 1.
    """

    def __init__(self, split: Split) -> None:
        self._split, self.stayed = split, 0.0

    def __call__(self) -> None:
        """Evict."""
        evict(self._split)
        self.stayed = max(self.stayed, resident_share(self._split))

    @property
    def state(self) -> str:
        """What a record says of measurements before each of which this was called."""
        if self.stayed < _STAYED:
            return "cold: evicted before every measurement"
        return (
            f"not cold: evicted before every measurement, but up to {self.stayed:.0%} of the split stayed in memory "
            "(a file system in memory, or files that a process has mapped or another user owns)"
        )


def resident_share(split: Split) -> float:
    """Share of the split's shards that is in memory, 0 … 1; of files of other users the kernel always says 1."""
    pages = [_resident(split.shard_path(number)) for number in range(len(split.shards))]
    return float(np.concatenate(pages).mean()) if pages else 0.0


def _resident(path: Path) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """For every page of a file whether it is in memory; mincore(2)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        content = np.frombuffer(mapped, np.uint8)
        found = np.zeros(-(-len(content) // mmap.PAGESIZE), np.uint8)
        status = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(content.ctypes.data),
            ctypes.c_size_t(len(content)),
            ctypes.c_void_p(found.ctypes.data),
        )
        del content  # or the map could not be closed
    if status:
        raise FeedlineError(f"cannot tell what of {path} is in memory: {os.strerror(ctypes.get_errno())}")
    return (found & 1).astype(bool)


def state(size_bytes: int) -> str:
    """What a record says of data of this size that are read over and over."""
    return HOT if size_bytes < memory_bytes() else "partly hot: there are more data than memory"


def advice(size_bytes: int, memory_bytes: int, *, cold: bool) -> str | None:
    """One line about data that fits in memory; None where it does not."""
    if size_bytes >= memory_bytes:
        return None
    sizes = f"the split has {size_bytes / 1e9:.2f} GB, less than this machine's memory ({memory_bytes / 1e9:.1f} GB)"
    if cold:
        return f"{sizes}: only the first pass of a measurement is cold; keep --seconds below a pass, or take more data"
    return f"{sizes}: reading is from memory, not from the storage; --cold evicts it before every measurement"


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes() -> int:
    """Memory that is free or can be had, on Linux; all of it elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        return memory_bytes()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
