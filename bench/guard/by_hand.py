"""The references: the loader's work as one writes it by hand, from the same bytes to the same windows and sizes.

Plain `pread`, simplejpeg for whole images, torch's antialiased resize, a `ThreadPoolExecutor`: nothing here may call
the loader's code, or a slow-down there would cancel itself. Only what is to be done (windows, sizes) and which core it
may use is asked of it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from torch.nn import functional as F

from loader import Transform
from loader.affinity import Cores, pinned
from loader.order import Ids
from loader.resolve import usable_cores
from shard.dataset import Split

Pixels = npt.NDArray[np.uint8]
_TASK = 4  # images per task


class ByHand:
    """Works on fixed batches of samples.

    Args:
        split: where they are.
        transform: gives windows, sizes and flips.
        batches: sample ids of every batch.
        core: of the thread that works alone.
    """

    def __init__(self, split: Split, transform: Transform, batches: list[Ids], core: Cores) -> None:
        self.ids = ids = np.concatenate(batches)
        self.rows = np.arange(len(ids))
        self.params = transform.params(0, 0, ids, split.width[ids], split.height[ids])
        self._batch_size = len(batches[0])
        self._labels = split.label[ids]
        self._files = {
            int(shard): os.open(split.shard_path(int(shard)), os.O_RDONLY)
            for shard in np.unique(split.shard[ids])
        }
        self._places = [
            (self._files[int(split.shard[i])], int(split.size[i]), int(split.offset[i]), int(split.crc32[i]))
            for i in ids.tolist()
        ]
        self.encoded = [np.frombuffer(self._bytes(row), np.uint8) for row in range(len(ids))]
        self._buffer = bytearray(max(map(len, self.encoded)))
        # Of the same sizes, but cheap to decode, so that what comes after decoding shows.
        self.blank = [
            np.frombuffer(_blank(width, height), np.uint8)
            for width, height in zip(split.width[ids].tolist(), split.height[ids].tolist(), strict=True)
        ]
        self._windows, self._resized = self.params.window.tolist(), self.params.resized.tolist()
        self._pool = ThreadPoolExecutor(usable_cores())
        self._one = ThreadPoolExecutor(1)  # where ours hands work to a thread, too
        with pinned(core):
            self._one.submit(int).result()  # starts it

    def read(self, count: int) -> None:
        """Read and check the first `count` samples, into memory that is there already."""
        self._one.submit(self._check, count).result()

    def decode(self, count: int) -> None:
        """Decode the first `count` images, whole."""
        for encoded in self.encoded[:count]:
            simplejpeg.decode_jpeg(encoded, "RGB")

    def transform(self, count: int) -> None:
        """Cut and resize the first `count`, of blank images."""
        self._one.submit(lambda: [self._picture(self.blank[row], row) for row in range(count)]).result()

    def load(self) -> None:
        """All batches."""
        for _ in self.batches(0):
            pass

    def batches(self, first: int) -> Iterator[tuple[Pixels, npt.NDArray[np.int64]]]:
        """Images uint8 [B, H, W, 3] and labels [B], from batch `first` on."""
        starts = range(first * self._batch_size, len(self.ids), self._batch_size)
        work = [
            [self._task(row) for row in range(start, start + self._batch_size, _TASK)] for start in starts
        ]
        for start, tasks in zip(starts, work, strict=True):
            images = np.concatenate([np.stack(task.result()) for task in tasks])
            yield images, self._labels[start : start + self._batch_size]

    def _task(self, first: int) -> Future[list[Pixels]]:
        last = min(first + _TASK, first - first % self._batch_size + self._batch_size)
        return self._pool.submit(lambda: [self._picture(self._bytes(row), row) for row in range(first, last)])

    def _bytes(self, row: int) -> bytes:
        file, size, offset, crc = self._places[row]
        data = os.pread(file, size, offset)
        assert zlib.crc32(data) == crc, f"row {row} does not have the bytes that the index says"
        return data

    def _check(self, count: int) -> None:
        for file, size, offset, crc in self._places[:count]:
            view = memoryview(self._buffer)[:size]
            assert os.preadv(file, [view], offset) == size, "a shard is shorter than the index says"
            assert zlib.crc32(view) == crc, "a sample does not have the bytes that the index says"

    def _picture(self, encoded: bytes | Pixels, row: int) -> Pixels:
        top, left, height, width = self._windows[row]
        window = simplejpeg.decode_jpeg(encoded, "RGB")[top : top + height, left : left + width]
        pixels = torch.from_numpy(np.ascontiguousarray(window))[None].permute(0, 3, 1, 2)
        resized = F.interpolate(pixels, size=self._resized[row], mode="bilinear", antialias=True)
        size = self.params.size
        return F.pad(resized[0, :, :size, :size], _missing(resized.shape, size)).permute(1, 2, 0).numpy()

    def close(self) -> None:
        """End the threads and close the files."""
        self._pool.shutdown()
        self._one.shutdown()
        for file in self._files.values():
            os.close(file)


def _blank(width: int, height: int) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(np.full((height, width, 1), 128, np.uint8), colorspace="GRAY")
    return encoded


def _missing(shape: torch.Size, size: int) -> tuple[int, int, int, int]:
    """Padding on the right and below that makes a crop of padded images as large as it should be."""
    return 0, max(0, size - shape[3]), 0, max(0, size - shape[2])
