"""Images that are there twice, byte for byte: within a split, or in several (leakage)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from shard.dataset import Split, read_sources
from shard.labels import label_column, numbers


def find_duplicates(splits: Mapping[str, Split], digests: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    """Groups of equal images over all splits, as rows for duplicates.jsonl.

    Args:
        splits: by name.
        digests: by name, 16 bytes per sample of the split. At 128 bits two different images of 14 million are
            taken for equal with odds of 1 to 10**24.
    """
    names = list(splits)
    halves = np.frombuffer(b"".join(digests[name] for name in names), np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    repeated = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
    if not len(repeated):
        return
    starts = np.cumsum([0, *(len(one) for one in splits.values())])
    sources = {name: read_sources(one.root) for name, one in splits.items()}
    breaks = np.flatnonzero(np.diff(repeated) > 1) + 1
    groups = [np.sort(order[run[0] : run[-1] + 2]) for run in np.split(repeated, breaks)]
    for group in sorted(groups, key=lambda rows: int(rows[0])):
        places = [int(np.searchsorted(starts, row, side="right")) - 1 for row in group]
        samples = [(names[place], int(row - starts[place])) for row, place in zip(group, places, strict=True)]
        yield {
            "across_splits": len(set(places)) > 1,
            "labels_differ": len({tuple(numbers(splits[name].label_of(i))) for name, i in samples}) > 1,
            "samples": [
                {
                    "split": name,
                    "key": splits[name].key(i),
                    label_column(splits[name].lists is not None): splits[name].label_of(i),
                    "source": sources[name][i].as_py(),
                }
                for name, i in samples
            ],
        }
