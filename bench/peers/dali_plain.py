"""A plain DALI pipeline as its documentation shows it, on our shards: reader, random crop, resize, normalise.

Does more than our loader in one point (normalises to float) and less in others: it shuffles through a buffer,
cannot resume, and leaves chroma upsampling at its faster default.
"""

from __future__ import annotations

from typing import Any

import torch

from loader import RandomResizedCrop
from shard.dataset import Split

_MEAN = [0.485 * 255, 0.456 * 255, 0.406 * 255]
_STD = [0.229 * 255, 0.224 * 255, 0.225 * 255]


class DaliPlain:
    """See `bench.measure.Stage`."""

    name, title, lead_in = "dali_plain", "peer: plain DALI pipeline", 4

    def __init__(
        self, split: Split, crop: RandomResizedCrop, batch_size: int, device: torch.device, threads: int
    ) -> None:
        # Only here: DALI has no wheel for some systems.
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        gpu = device.type == "cuda"
        self._batch_size = batch_size
        tars = [split.shard_path(i) for i in range(len(split.shards))]
        pipe = Pipeline(
            batch_size=batch_size,
            num_threads=threads,
            device_id=(device.index or 0) if gpu else None,
            prefetch_queue_depth=2,
            seed=0,
        )
        with pipe:
            jpeg, label = fn.readers.webdataset(  # type: ignore[misc]
                paths=[str(tar) for tar in tars],
                index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
                ext=["jpg", "cls"],
                missing_component_behavior="error",
                random_shuffle=True,
                initial_fill=1024,
                name="reader",
            )
            images = fn.decoders.image_random_crop(
                jpeg,
                device="mixed" if gpu else "cpu",
                random_area=list(crop.scale),
                random_aspect_ratio=list(crop.ratio),
                output_type=types.RGB,
            )
            images = fn.resize(images, size=[crop.size, crop.size])
            images = fn.crop_mirror_normalize(
                images,
                mirror=fn.random.coin_flip(probability=crop.hflip),
                mean=_MEAN,
                std=_STD,
                dtype=types.FLOAT,
                output_layout="CHW",
            )
            pipe.set_outputs(images, label)
        pipe.build()
        self._pipe: Any = pipe
        self._device = device
        self.last: Any = None  # images of the newest batch, a DALI tensor list

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        self.last, _ = self._pipe.run()
        return self._batch_size, 0

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def close(self) -> None:
        """See `Stage.close`."""
        self._pipe = self.last = None
