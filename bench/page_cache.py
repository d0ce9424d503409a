"""What of a dataset the kernel holds in memory, and making it forget."""

from __future__ import annotations

import os

from shard.dataset import Split
from shard.errors import FeedlineError


def evict(split: Split) -> None:
    """Drop the split's shards from the page cache, so that the next read comes from the storage.

    Raises:
        FeedlineError: this system has no `posix_fadvise`, or a shard is not a local file.
    """
    if not hasattr(os, "posix_fadvise"):
        raise FeedlineError("--cold needs posix_fadvise, which this system does not have; leave it out")
    for number in range(len(split.shards)):
        path = split.shard_path(number)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise FeedlineError(f"--cold cannot open shard {path}: {error.strerror}") from error
        try:
            os.fsync(descriptor)  # pages that are not written yet would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


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
