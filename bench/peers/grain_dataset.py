"""grain: an ArrayRecord file with JPEG bytes, Pillow in its worker processes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import grain
import numpy as np
import torch
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from bench.peers.augment import draw_window
from bench.peers.base import Job, Peer
from loader import RandomResizedCrop

_LABEL_BYTES = 8
_AHEAD = 2  # batches, before and after the pipe of each worker


class Grain(Peer):
    """See `Peer`. Converted to ArrayRecord once."""

    output = "uint8 NHWC"
    note = "resizes the window with Pillow"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        path = str(job.scratch / "images.array_record")
        writer = ArrayRecordWriter(path, "group_size:1")
        for image, label in self.samples():
            writer.write(label.to_bytes(_LABEL_BYTES, "little") + image)
        writer.close()
        # By default each worker reads 500 elements ahead with 16 threads, and here an element is a batch: gigabytes.
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
        dataset = (
            grain.MapDataset.source(grain.sources.ArrayRecordDataSource(path))
            .seed(0)
            .shuffle()
            .repeat()
            .random_map(partial(_decode, crop=job.crop))
            .batch(job.batch_size, drop_remainder=True)
            .to_iter_dataset(reading)
            .mp_prefetch(grain.MultiprocessingOptions(num_workers=job.threads, per_worker_buffer_size=_AHEAD))
        )
        self._items: Any = iter(dataset)

    def epoch(self) -> Iterator[tuple[Any, Any]]:
        """See `Peer.epoch`."""
        for _ in range(self.full_batches):
            images, labels = next(self._items)
            yield torch.from_numpy(images), labels

    def close(self) -> None:
        """See `Stage.close`."""
        super().close()
        self._items.close()


def _decode(record: bytes, rng: np.random.Generator, crop: RandomResizedCrop) -> tuple[Any, int]:
    image = Image.open(io.BytesIO(record[_LABEL_BYTES:])).convert("RGB")
    left, top, width, height = draw_window(image.width, image.height, crop, rng)
    side = (crop.size, crop.size)
    resized = image.resize(side, Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    if rng.random() < crop.hflip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(resized), int.from_bytes(record[:_LABEL_BYTES], "little")
