"""`python -m bench parity`: our pixels against Pillow and torchvision, image by image."""

from __future__ import annotations

import io
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from loader import Loader, Params, RandomResizedCrop, ResizeCenterCrop, Transform
from loader.reader import ShardReader
from shard.dataset import Dataset, Split

Pixels = npt.NDArray[np.uint8]

_BATCH = 50


def parity(
    dataset: Dataset, split: str, size: int, device: torch.device, backends: list[str]
) -> list[dict[str, Any]]:
    """Compare all images of a split, decoded and transformed by us and by Pillow with torchvision.

    Args:
        dataset: where the images are.
        split: name of the split.
        size: side of the output; evaluation resizes to 8/7 of it first (256 for 224).
        device: where our backends run.
        backends: names of them.

    Returns:
        Per transform and backend the mean, 99.9th percentile and greatest absolute difference in grey
        levels over all pixels and channels.
    """
    rows = []
    transforms: dict[str, Transform] = {
        "train": RandomResizedCrop(size=size),
        "eval": ResizeCenterCrop(size=size, resize=size * 8 // 7),
    }
    for name, transform in transforms.items():
        for backend in backends:
            counts = np.zeros(256, np.int64)
            with Loader(
                dataset, split, transform, batch_size=_BATCH, shuffle=False, device=device, backend=backend
            ) as loader:
                for batch in loader:
                    ids = batch.ids[: batch.num_valid].numpy()
                    ours = batch.images[: batch.num_valid].cpu().numpy().astype(np.int16)
                    theirs = reference(loader.split, transform, ids).astype(np.int16)
                    counts += np.bincount(np.abs(ours - theirs).ravel(), minlength=256)
            rows.append(
                {"transform": name, "backend": backend, "images": loader.num_samples, **_summary(counts)}
            )
    return rows


def reference(split: Split, transform: Transform, ids: npt.NDArray[np.int64]) -> Pixels:
    """The same crops by Pillow and torchvision, uint8 [B, size, size, 3]; epoch and seed 0."""
    params = transform.params(0, 0, ids, split.width[ids], split.height[ids])
    with closing(ShardReader(split)) as reader:
        encoded = reader.read(ids)
    images = (Image.open(io.BytesIO(data.tobytes())).convert("RGB") for data in encoded)
    return np.stack([_reference(image, transform, params, i) for i, image in enumerate(images)])


def _reference(image: Image.Image, transform: Transform, params: Params, i: int) -> Pixels:
    if isinstance(transform, ResizeCenterCrop):
        image = TF.center_crop(TF.resize(image, [transform.resize]), [transform.size])
    else:
        top, left, height, width = params.window[i].tolist()
        image = TF.resized_crop(image, top, left, height, width, [params.size, params.size])
        image = TF.horizontal_flip(image) if params.flip[i] else image
    return np.asarray(image)


def _summary(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    total = counts.sum()
    return {
        "mean": round(float((counts * np.arange(256)).sum() / total), 4),
        "p99.9": int(np.searchsorted(np.cumsum(counts), 0.999 * total)),
        "max": int(counts.nonzero()[0].max()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text."""
    lines = [f"{'transform':10}{'backend':9}{'images':>7}{'mean':>9}{'p99.9':>7}{'max':>5}"]
    lines += [
        f"{r['transform']:10}{r['backend']:9}{r['images']:7d}{r['mean']:9.4f}{r['p99.9']:7d}{r['max']:5d}"
        for r in rows
    ]
    return "\n".join(lines)
