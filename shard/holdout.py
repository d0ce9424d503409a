"""Validation images for sources without any: a share of the training images, chosen by a keyed hash of their names."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shard.errors import FeedlineError
from shard.items import Listing
from shard.labels import LabelLists
from shard.plan import Ints, hash_order_of

Bools = npt.NDArray[np.bool_]


def hold_out(listing: Listing, share: float, seed: int) -> None:
    """Move a share of the split train to a new split val, in place.

    Which images is decided by a keyed hash of their names: a file that is added moves few others. Where a sample has
    one class, it is a share of each: of n images round(share · n), at least one and never all; a class of one image
    keeps it for training. Of a multi-label source it is a share of all images; none is the last of a class, and a few
    more are added so that every class that can spare one has one.

    Raises:
        FeedlineError: there is no split train, there is a split val or validation, or nothing can be held out.
    """
    if not 0 < share < 1:
        raise FeedlineError(f"val is {share}; it must lie between 0 and 1")
    if "train" not in listing.splits or not listing.splits.keys().isdisjoint(("val", "validation")):
        raise FeedlineError(
            f"--val holds out a part of the split train as val, but the source has "
            f"{', '.join(sorted(listing.splits))}; leave it out"
        )
    table = listing.splits["train"]
    order = hash_order_of(table["source"], f"{seed}\0val\0")
    if listing.multi_label:
        moved = _of_all(LabelLists.of(table["labels"], len(listing.classes)), order, share)
    else:
        moved = _of_each_class(table["label"].to_numpy(), order, share)
    if not moved.any():
        raise FeedlineError("--val has nothing to hold out: every image is the last of a class; leave it out")
    listing.splits["train"] = table.filter(pa.array(~moved))
    listing.splits["val"] = table.filter(pa.array(moved))


def _of_each_class(label: npt.NDArray[np.integer], order: Ints, share: float) -> Bools:
    """Which samples [N] are held out: the first of each class in `order`."""
    order = order[np.argsort(label[order], kind="stable")]
    count = np.bincount(label)
    wanted = np.clip(np.rint(share * count).astype(np.int64), 1, np.maximum(count - 1, 0))
    place = np.arange(len(order)) - np.searchsorted(label[order], label[order])  # within its class
    moved = np.zeros(len(order), np.bool_)
    moved[order] = place < wanted[label[order]]
    return moved


def _of_all(labels: LabelLists, order: Ints, share: float) -> Bools:
    """Which samples [N] of several classes are held out: the first in `order`, then some for classes that have none."""
    moved = np.zeros(len(order), np.bool_)
    left = np.bincount(labels.values, minlength=labels.classes)  # for training, of each class
    held_out = np.zeros_like(left)
    wanted = min(max(round(share * len(order)), 1), len(order) - 1)

    def move(sample: int) -> bool:
        """Hold it out, unless it is the last of one of its classes: a network cannot learn what it never saw."""
        classes = labels[sample]
        if np.any(left[classes] <= 1):
            return False
        moved[sample] = True
        left[classes] -= 1
        held_out[classes] += 1
        return True

    waiting = iter(order.tolist())
    while wanted and (sample := next(waiting, None)) is not None:
        wanted -= move(sample)
    of, places = labels.pairs(order)
    by_class = np.argsort(labels.values[places], kind="stable")
    samples = order[of[by_class]]  # of every class, one class after the other, each in `order`
    ends = np.cumsum(left + held_out)
    for c in np.flatnonzero((left > 1) & (held_out == 0)).tolist():
        if not held_out[c]:  # no earlier turn of this loop has given it one
            any(move(sample) for sample in samples[ends[c] - left[c] : ends[c]].tolist())
    return moved
