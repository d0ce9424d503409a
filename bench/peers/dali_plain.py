"""A plain DALI pipeline as its documentation shows it, on our shards: reader, random crop, resize, normalise.

It shuffles through a buffer, cannot resume, and leaves chroma upsampling at its faster default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.auto_aug import rand_augment as dali_rand_augment

from bench.peers.augment import rand_augment
from bench.peers.base import MEAN, STD, Job, Peer


class DaliPlain(Peer):
    """See `Peer`."""

    note = "decodes the window alone (on a GPU all); shuffles through a buffer of 1,024"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        gpu = job.device.type == "cuda"
        tars = [self.split.shard_path(i) for i in range(len(self.split.shards))]
        self._loader = pipeline_def(_graph, enable_conditionals=job.augment is not None)(
            job,
            [str(tar) for tar in tars],
            batch_size=job.batch_size,
            num_threads=job.threads,
            device_id=(job.device.index or 0) if gpu else None,
            prefetch_queue_depth=2,
            seed=0,
        )
        self._loader.build()

    def epoch(self) -> Iterator[tuple[Any, Any]]:
        """See `Peer.epoch`; images are a tensor list of DALI's. Labels lie in the shards as text."""
        for _ in range(self.full_batches):
            images, texts = self._loader.run()
            yield images, torch.tensor([int(bytes(np.asarray(text))) for text in texts])


def _graph(job: Job, tars: list[str]) -> Any:
    crop, gpu = job.crop, job.device.type == "cuda"
    jpeg, label = fn.readers.webdataset(  # type: ignore[misc]
        paths=tars,
        index_paths=[tar.removesuffix(".tar") + ".idx" for tar in tars],
        ext=["jpg", "cls"],
        missing_component_behavior="error",
        random_shuffle=True,
        initial_fill=1024,
        name="reader",
    )
    window: dict[str, Any] = {"random_area": list(crop.scale), "random_aspect_ratio": list(crop.ratio)}
    size = [crop.size, crop.size]
    if gpu:  # of the whole image: see `loader.dali_backend`, where windows are decoded on the CPU, or crash
        images = fn.decoders.image(jpeg, device="mixed", output_type=types.RGB)
        images = fn.random_resized_crop(images, size=size, **window)
    else:
        images = fn.decoders.image_random_crop(jpeg, output_type=types.RGB, **window)
        images = fn.resize(images, size=size)
    mirror = fn.random.coin_flip(probability=crop.hflip)
    if job.augment is not None:
        n, magnitude = rand_augment(job.augment)
        images = fn.flip(images, horizontal=mirror)
        mirror = 0
        images = dali_rand_augment.rand_augment(
            images, n=n, m=magnitude, interp_type=types.INTERP_LINEAR, shape=[crop.size, crop.size]
        )
    images = fn.crop_mirror_normalize(
        images,
        mirror=mirror,
        mean=[255 * m for m in MEAN],
        std=[255 * s for s in STD],
        dtype=types.FLOAT,
        output_layout="CHW",
    )
    return images, label
