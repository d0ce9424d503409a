"""Hugging Face datasets, as its image classification example has it: Arrow with JPEG bytes, Pillow in workers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import datasets

from bench.peers.augment import vision_transform
from bench.peers.base import Job, Peer


class HuggingFace(Peer):
    """See `Peer`. Converted to Arrow once."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        writer = datasets.arrow_writer.ArrowWriter(path=str(job.scratch / "images.arrow"), features=features)
        for image, label in self.samples():
            writer.write({"image": {"bytes": image, "path": None}, "label": label})
        writer.finalize()
        writer.close()
        images = datasets.Dataset.from_file(str(job.scratch / "images.arrow"))
        transform = partial(_apply, transform=vision_transform(job))
        self._loader = self.data_loader(images.with_transform(transform))

    def epoch(self) -> Iterator[tuple[Any, Any]]:
        """See `Peer.epoch`."""
        for batch in self._loader:
            yield batch["pixel_values"], batch["label"]


def _apply(rows: dict[str, Any], transform: Any) -> dict[str, Any]:
    pixels = [transform(image.convert("RGB")) for image in rows["image"]]
    return {"pixel_values": pixels, "label": rows["label"]}
