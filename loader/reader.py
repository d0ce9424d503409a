"""Encoded images out of memory-mapped shards, by sample id."""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from shard.dataset import Split
from shard.errors import FeedlineError

Encoded = npt.NDArray[np.uint8]

_HAS_MADVISE = hasattr(mmap.mmap, "madvise")  # not on Windows
_PAGE = mmap.PAGESIZE
# A mapping holds a file descriptor and 1,024 is the usual limit of those; images already handed out
# keep their own mapping alive, so dropping one here is always safe.
_MAX_OPEN_SHARDS = 256


class ShardReader:
    """Reads the encoded bytes of samples through memory maps, without copying.

    Not for use from several threads at once: one thread reads, the decoders share what it returns.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self._open: OrderedDict[int, mmap.mmap] = OrderedDict()

    def _map(self, shard: int) -> mmap.mmap:
        if (mapped := self._open.get(shard)) is not None:
            self._open.move_to_end(shard)
            return mapped
        path = self._split.shard_path(shard)
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

    def announce(self, ids: npt.NDArray[np.int64]) -> None:
        """Ask the kernel to read the bytes of these samples ahead (MADV_WILLNEED), and do not wait."""
        if not _HAS_MADVISE:
            return
        for i in ids.tolist():
            mapped = self._map(int(self._split.shard[i]))
            offset = int(self._split.offset[i])
            start = offset - offset % _PAGE
            mapped.madvise(mmap.MADV_WILLNEED, start, offset - start + int(self._split.size[i]))

    def read(self, ids: npt.NDArray[np.int64]) -> list[Encoded]:
        """Encoded images of `ids` [B]: a list of B read-only uint8 arrays [size], views into the maps."""
        split = self._split
        return [
            np.frombuffer(self._map(int(split.shard[i])), np.uint8, int(split.size[i]), int(split.offset[i]))
            for i in ids.tolist()
        ]

    def close(self) -> None:
        """Forget the mappings; memory is returned when the last image that points into it is gone."""
        self._open.clear()
