"""Images in memory: for stages in which the storage has no part, and to pack anew."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loader.cache import ShardCache
from loader.order import Ids
from loader.reader import Encoded, ShardReader
from shard.build import build
from shard.dataset import Dataset, Split
from shard.image import KEEPABLE, Policy
from shard.plan import Settings

_BYTES = 256_000_000  # of encoded images, at most


@dataclass(frozen=True, slots=True)
class Sample:
    """Images in memory.

    Attributes:
        ids: int64 [N], rows of the split's index.
        encoded: N uint8 arrays.
        split: where they are from.
    """

    ids: Ids
    encoded: list[Encoded]
    split: Split

    @property
    def mean_bytes(self) -> float:
        """Mean size of an encoded image."""
        return sum(map(len, self.encoded)) / len(self.encoded)


def is_remote(split: Split) -> bool:
    """Whether its shards lie at URLs."""
    return "://" in split.shard_url(0)


def take_sample(dataset: Dataset, split: Split, count: int, scratch: Path) -> Sample:
    """Read up to `count` images of a split; those at a URL come by way of a cache in `scratch`.

    Raises:
        FeedlineError: they cannot be read.
    """
    return _fetched_sample(dataset, split, count, scratch) if is_remote(split) else _read_sample(split, count)


def _read_sample(split: Split, count: int) -> Sample:
    rows = np.random.default_rng(0).permutation(len(split))[:count]
    ids = np.sort(rows[np.cumsum(split.size[rows]) <= _BYTES])
    reader = ShardReader(split)
    try:
        return Sample(ids, reader.read(ids), split)
    finally:
        reader.close()


def _fetched_sample(dataset: Dataset, split: Split, count: int, scratch: Path) -> Sample:
    """The first images of a split at a URL, out of as few shards as it takes."""
    ids = np.argsort(split.shard, kind="stable")[:count].astype(np.int64)
    ids = ids[np.cumsum(split.size[ids]) <= _BYTES]
    sums = [one["sha256"] for one in dataset.manifest["splits"][split.name]["shards"]]
    cache = ShardCache(scratch / "cache-sample")
    with ExitStack() as stack:
        paths = {
            shard: stack.enter_context(cache.acquire(split.shard_url(shard), split.shard_bytes[shard], sums[shard]))
            .path
            for shard in np.unique(split.shard[ids]).tolist()
        }  # fmt: skip
        reader = ShardReader(split, paths.__getitem__)
        stack.callback(reader.close)
        return Sample(ids, reader.read(ids), split)


def pack(sample: Sample, folder: Path, short_side: int | None) -> Path:
    """Build a dataset of the images in memory, reduced to a shorter side; returns its folder.

    Raises:
        FeedlineError: it cannot be built, or the images have several classes each.
    """
    source = folder.with_name(folder.name + "-images")
    for row, (sample_id, encoded) in enumerate(zip(sample.ids.tolist(), sample.encoded, strict=True)):
        path = source / f"{int(sample.split.label[sample_id]):06d}" / f"{row:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.tobytes())
    images = Policy(check="header", exif="keep", keep=KEEPABLE, short_side=short_side)
    build(source, folder, Settings(images=images), workers=1)
    return folder
