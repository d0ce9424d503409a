"""SPDL: its threaded pipeline with its own FFmpeg decoder; crop, resize and flip are FFmpeg filters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import spdl.io
import torch
from spdl.pipeline import PipelineBuilder

from bench.peers.augment import draw_window
from bench.peers.base import Job, Peer


class SPDL(Peer):
    """See `Peer`. Reads the same images as files."""

    output = "uint8 NHWC"
    note = "FFmpeg's decoder and scaler"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._files = [(str(p), int(p.parent.name)) for p in sorted(self.class_folders().rglob("*.jpg"))]
        self._random = np.random.default_rng(0)
        self._pipeline: Any = (
            PipelineBuilder()
            .add_source(self._order())
            .pipe(self._decode, concurrency=job.threads, output_order="input")
            .aggregate(job.batch_size)
            .pipe(_batch)
            .add_sink(2)
            .build(num_threads=job.threads, max_failures=0)
        )
        self._pipeline.start()
        self._items = iter(self._pipeline)

    def _order(self) -> Iterator[tuple[str, int]]:
        while True:
            yield from (self._files[i] for i in self._random.permutation(len(self._files)))

    def _decode(self, item: tuple[str, int]) -> tuple[Any, int]:
        path, label = item
        crop = self.job.crop
        packets = spdl.io.demux_image(path)
        left, top, width, height = draw_window(packets.width, packets.height, crop, self._random)
        flip = "hflip," if self._random.random() < crop.hflip else ""
        filters = (
            f"crop={width}:{height}:{left}:{top}:exact=1,"
            f"scale={crop.size}:{crop.size}:flags=bilinear,{flip}format=rgb24"
        )
        return spdl.io.decode_packets(packets, filter_desc=filters), label

    def epoch(self) -> Iterator[tuple[Any, Any]]:
        """See `Peer.epoch`."""
        for _ in range(self.full_batches):
            yield next(self._items)

    def close(self) -> None:
        """See `Stage.close`."""
        super().close()
        self._pipeline.stop()


def _batch(items: list[tuple[Any, int]]) -> tuple[Any, Any]:
    frames, labels = zip(*items, strict=True)
    return spdl.io.to_torch(spdl.io.convert_frames(list(frames))), torch.tensor(labels)
