"""Which sample goes into which shard: decided before anything is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shard.errors import FeedlineError
from shard.image import Policy
from shard.items import Item, Listing, rows
from shard.labels import require_single

# A sample's other members (header and data of .cls, headers of .jpg and .json, and its JSON) take about this.
_OVERHEAD_BYTES = 3072
_CHUNK = 1 << 18
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """A part of a dataset: so many classes, so many images of each in every split, chosen by a keyed hash.

    Attributes:
        classes: how many classes; None: all. They are numbered anew.
        per_class: how many images of a class and split, at most; None: all.
        seed: of the choice.
    """

    classes: int | None = None
    per_class: int | None = None
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Subset:
        """Read `classes=10,per-class=50,seed=0`; each part may be missing.

        Raises:
            FeedlineError: not of this form.
        """
        values: dict[str, int] = {}
        for part in text.split(","):
            match = re.fullmatch(r"(classes|per-class|seed)=(\d+)", part.strip())
            if match is None or (match[1] != "seed" and int(match[2]) == 0):
                raise FeedlineError(f"subset has {part!r}; write it like classes=10,per-class=50,seed=0")
            values[match[1].replace("-", "_")] = int(match[2])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the content of a dataset, besides its source.

    Attributes:
        seed: of the order.
        shard_bytes: a shard is closed before it grows beyond this (a single larger image stands alone).
        images: how images are judged and mended.
        subset: what part of the source to take; None: all.
        val: share of each class of the split train to hold out as split val, 0 … 1, exclusive; None: no such split is
            made.
    """

    seed: int = 0
    shard_bytes: int = 256_000_000
    images: Policy = field(default_factory=Policy)
    subset: Subset | None = None
    val: float | None = None


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One shard to write.

    Attributes:
        split: its split.
        number: its number in the split.
        first_key: key of its first item; the following count up.
        items: what goes in, in order.
    """

    split: str
    number: int
    first_key: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """File name without suffix."""
        return f"shard-{self.number:06d}"


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The shards of one split, as cuts through its order.

    Attributes:
        split: its name.
        table: its items, as listed.
        order: int64 [N], rows of `table` in the order of packing.
        cuts: int64 [shards + 1], positions in `order` where shards begin, and N.
    """

    split: str
    table: pa.Table
    order: Ints
    cuts: Ints

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self.cuts) - 1

    def job(self, number: int) -> ShardJob:
        """Shard `number`, with its items."""
        first, last = int(self.cuts[number]), int(self.cuts[number + 1])
        return ShardJob(self.split, number, first, rows(self.table, self.order[first:last]))

    def name(self, number: int) -> str:
        """File name of a shard, without suffix."""
        return f"shard-{number:06d}"

    def images(self, number: int) -> int:
        """How many images a shard is planned to have."""
        return int(self.cuts[number + 1] - self.cuts[number])


def plan(listing: Listing, settings: Settings) -> list[SplitPlan]:
    """Shuffle every split and cut it into shards.

    The order is that of BLAKE2b(seed, split, name): the same everywhere, and adding a file moves no other
    files relative to each other. The cuts follow the sizes of the source files, so neither the number of
    workers nor a rejected image moves a sample to another shard.
    """
    plans: list[SplitPlan] = []
    for split, table in sorted(listing.splits.items()):
        order = hash_order_of(table["source"], f"{settings.seed}\0{split}\0")
        needed = table["size"].to_numpy()[order] + _OVERHEAD_BYTES
        plans.append(SplitPlan(split, table, order, _cuts(needed, settings.shard_bytes)))
    return plans


def take_subset(listing: Listing, subset: Subset) -> None:
    """Reduce a listing, in place.

    Raises:
        FeedlineError: it has fewer classes than wanted, or is multi-label.
    """
    require_single(listing.multi_label, "--subset", "leave it out, or shorten the list")
    count = len(listing.classes) if subset.classes is None else subset.classes
    if count > len(listing.classes):
        raise FeedlineError(
            f"subset wants {count} classes, the source has {len(listing.classes)}; ask for fewer"
        )
    names = pa.array([name.encode(errors="surrogateescape") for name in listing.classes], pa.large_binary())
    chosen = np.sort(hash_order_of(names, f"{subset.seed}\0classes\0")[:count])
    relabel = np.full(len(listing.classes), -1, np.int32)
    relabel[chosen] = np.arange(count, dtype=np.int32)
    listing.classes = tuple(listing.classes[i] for i in chosen)
    listing.readable = tuple(listing.readable[i] for i in chosen) if listing.readable else ()
    for split, table in listing.splits.items():
        labels = relabel[table["label"].to_numpy()]
        order = hash_order_of(table["source"], f"{subset.seed}\0{split}\0subset\0")
        order = order[labels[order] >= 0]
        if subset.per_class is not None:
            by_label = order[np.argsort(labels[order], kind="stable")]
            of = labels[by_label]
            place = np.arange(len(of)) - np.searchsorted(of, of)  # within its class
            order = by_label[place < subset.per_class]
        rows_kept = np.sort(order)
        kept = table.take(rows_kept)
        place_of_label = table.schema.get_field_index("label")
        listing.splits[split] = kept.set_column(place_of_label, "label", pa.array(labels[rows_kept]))


def fingerprint(stamp: str, settings: Settings) -> str:
    """Identify a plan: hex digest over the source's stamp and the settings."""
    values = asdict(settings)
    if settings.val is None:
        del values["val"]  # datasets that were built before there was such a setting stay the same
    text = json.dumps([stamp, values], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def hash_order_of(names: pa.ChunkedArray | pa.Array, prefix: str) -> Ints:
    """Row numbers sorted by BLAKE2b-128(prefix + name): int64 [N]; `names` are strings or bytes."""
    begun = hashlib.blake2b(prefix.encode(), digest_size=16)
    digests = np.empty((len(names), 2), dtype=">u8")

    def digest(name: bytes) -> bytes:
        one = begun.copy()
        one.update(name)
        return one.digest()

    for first in range(0, len(names), _CHUNK):
        part = names.slice(first, _CHUNK).cast(pa.large_binary()).to_pylist()
        digests[first : first + len(part)] = np.frombuffer(b"".join(map(digest, part)), ">u8").reshape(-1, 2)
    high, low = (np.ascontiguousarray(digests[:, i]).astype(np.uint64) for i in (0, 1))
    del digests
    return np.lexsort((low, high)).astype(np.int64, copy=False)


def _cuts(needed: Ints, room: int) -> Ints:
    """Close a shard before its sum would exceed `room`; at least one item each."""
    ends = np.cumsum(needed)
    cuts, before = [0], 0
    while cuts[-1] < len(needed):
        last = int(np.searchsorted(ends, before + room, side="right"))
        last = max(last, cuts[-1] + 1)
        cuts.append(last)
        before = int(ends[last - 1])
    return np.asarray(cuts, np.int64)


def all_jobs(plans: list[SplitPlan]) -> Iterator[tuple[SplitPlan, int]]:
    """Every shard of every split, in order."""
    for one in plans:
        for number in range(len(one)):
            yield one, number
