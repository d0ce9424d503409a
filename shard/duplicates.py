"""Images that are there twice, byte for byte: within a split, or in several (leakage)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shard.dataset import Split, read_sources
from shard.storage import storage_errors


def find_duplicates(splits: Mapping[str, Split]) -> Iterator[dict[str, Any]]:
    """Groups of equal images over all splits, as rows for duplicates.jsonl.

    Candidates have the same size and CRC-32; whether they are equal is decided by their bytes.
    """
    names = list(splits)
    pairs = np.concatenate(
        [
            (one.crc32.astype(np.uint64) << np.uint64(32)) ^ one.size.astype(np.uint64)
            for one in splits.values()
        ]
    )
    starts = np.cumsum([0, *(len(one) for one in splits.values())])
    order = np.argsort(pairs, kind="stable")
    sorted_pairs = pairs[order]
    repeated = np.flatnonzero(sorted_pairs[1:] == sorted_pairs[:-1])
    if not len(repeated):
        return
    sources = {name: read_sources(one.root) for name, one in splits.items()}
    breaks = np.flatnonzero(np.diff(repeated) > 1) + 1
    groups = [order[run[0] : run[-1] + 2] for run in np.split(repeated, breaks)]
    for group in sorted(groups, key=lambda rows: int(rows[0])):
        places = [int(np.searchsorted(starts, row, side="right")) - 1 for row in group]
        samples = [(names[p], int(row - starts[p])) for row, p in zip(group, places, strict=True)]
        yield from _equal(samples, splits, sources)


def _equal(
    samples: list[tuple[str, int]], splits: Mapping[str, Split], sources: Mapping[str, pa.ChunkedArray]
) -> Iterator[dict[str, Any]]:
    by_bytes: dict[bytes, list[tuple[str, int]]] = {}
    for name, i in samples:
        by_bytes.setdefault(read_image(splits[name], i), []).append((name, i))
    for same in by_bytes.values():
        if len(same) > 1:
            labels = {int(splits[name].label[i]) for name, i in same}
            yield {
                "across_splits": len({name for name, _ in same}) > 1,
                "labels_differ": len(labels) > 1,
                "samples": [
                    {
                        "split": name,
                        "key": splits[name].key(i),
                        "label": int(splits[name].label[i]),
                        "source": sources[name][i].as_py(),
                    }
                    for name, i in same
                ],
            }


def read_image(split: Split, i: int) -> bytes:
    """Encoded image of sample i, out of its shard.

    Raises:
        FeedlineError: the shard cannot be read.
    """
    path: Path = split.shard_path(int(split.shard[i]))
    with storage_errors("read", path), path.open("rb") as file:
        file.seek(int(split.offset[i]))
        return file.read(int(split.size[i]))
