"""What to pack, as columns: a listing of 14 million images stays within a few hundred bytes each."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shard.errors import FeedlineError
from shard.labels import LISTS, Label, flat_numbers, label_column

SCHEMA = pa.schema(
    [
        ("source", pa.large_binary()),
        ("label", pa.int32()),
        ("container", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)
SCHEMA_OF_LISTS = SCHEMA.set(SCHEMA.get_field_index("label"), pa.field("labels", LISTS))

# Photos in formats that are not read; whoever has them means them as samples.
UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".jxl"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)

# Reasons of what is in the way of no sample.
BESIDE_ITS_IMAGE = "a format that is not read; there is an image of the same name beside it"
NO_SAMPLE = "no image and no label: not a sample"

_CHUNK = 1 << 20  # rows


class Item(NamedTuple):
    """One image.

    Attributes:
        source: its name, unique in the dataset: the path relative to the source, with forward slashes.
        label: index into the class list; a list of them in a multi-label source.
        container: number of the file that holds it, for the reader; -1: the file `source` itself.
        offset: bytes into the container.
        size: bytes.
    """

    source: str
    label: Label
    container: int
    offset: int
    size: int


class Reader(Protocol):
    """Gives an item's bytes; is sent to worker processes."""

    def read(self, item: Item) -> bytes:
        """Bytes of the image as the source has them.

        Raises:
            FeedlineError: the source has vanished or changed.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileReader:
    """Reads files under `root`, or byte ranges of `containers`."""

    root: str
    containers: tuple[str, ...] = ()

    def read(self, item: Item) -> bytes:
        """See `Reader.read`."""
        path = (
            self.containers[item.container] if item.container >= 0 else os.path.join(self.root, item.source)
        )
        try:
            if item.container >= 0:
                data = os.pread(_handle(path).fileno(), item.size, item.offset)
            else:
                handle = os.open(path, os.O_RDONLY)
                try:
                    data = os.read(handle, item.size + 1)  # one more, to see a file that has grown
                finally:
                    os.close(handle)
        except OSError as error:
            # Not the image's fault: the source vanished or its disk failed, and going on would hide that.
            raise FeedlineError(
                f"cannot read {path}: {error.strerror}; restore it and run the same command again"
            ) from error
        if len(data) != item.size:
            raise FeedlineError(
                f"{path} has changed while the build was running ({item.source}: {item.size} bytes expected, "
                f"{len(data)} found); restore it, or run again with --overwrite"
            )
        return data


@lru_cache(maxsize=64)
def _handle(path: str) -> io.FileIO:
    return io.FileIO(path)


@dataclass(slots=True, kw_only=True)
class Listing:
    """A source, listed.

    Attributes:
        kind: of source, such as "folders".
        classes: class names by label.
        readable: by label, a name for people where one is known, else "".
        splits: by name, a table of `SCHEMA`, in no particular order; of a multi-label source with
            `labels` (list<int32>) in place of `label`.
        ignored: rows for rejected.jsonl: what is no usable image of a class; see `lost`.
        reader: gives the bytes.
    """

    kind: str
    classes: tuple[str, ...]
    splits: dict[str, pa.Table]
    reader: Reader
    ignored: list[dict[str, str]] = field(default_factory=list)
    readable: tuple[str, ...] = ()

    @property
    def multi_label(self) -> bool:
        """Whether a sample may be of several classes, or of none."""
        return any("labels" in rows.column_names for rows in self.splits.values())

    @property
    def lost(self) -> list[dict[str, str]]:
        """Those of `ignored` that were meant as samples: photos that are not read, and all samples of tars."""
        meant = [row for row in self.ignored if row["reason"] not in (BESIDE_ITS_IMAGE, NO_SAMPLE)]
        if self.kind == "webdataset":
            return meant
        return [row for row in meant if row["source"].lower().endswith(UNREAD_SUFFIXES)]


def table(
    sources: Sequence[bytes],
    labels: npt.ArrayLike | Sequence[Label],
    sizes: npt.ArrayLike,
    *,
    multi_label: bool = False,
    containers: npt.ArrayLike = -1,
    offsets: npt.ArrayLike = 0,
    mtimes_ns: npt.ArrayLike = 0,
) -> pa.Table:
    """Make a table of `SCHEMA`, or of `SCHEMA_OF_LISTS`; single numbers hold for all rows."""
    n = len(sources)

    def column(values: Any, dtype: type) -> Any:
        return pa.array(np.broadcast_to(np.asarray(values, dtype), n))

    columns = [
        pa.array(sources, pa.large_binary()),
        pa.array(labels, LISTS) if multi_label else column(labels, np.int32),
        column(containers, np.int32),
        column(offsets, np.int64),
        column(sizes, np.int64),
        column(mtimes_ns, np.int64),
    ]
    return pa.table(columns, schema=SCHEMA_OF_LISTS if multi_label else SCHEMA)


def rows(items: pa.Table, indices: npt.NDArray[np.int64]) -> tuple[Item, ...]:
    """The items at `indices`, in that order."""
    found: list[Item | None] = [None] * len(indices)
    # Batch by batch: `Table.take` first copies all of a column that has several chunks.
    names = ("source", label_column("labels" in items.column_names), "container", "offset", "size")
    first = 0
    for batch in items.to_batches():
        here = np.nonzero((indices >= first) & (indices < first + len(batch)))[0]
        part = batch.take(pa.array(indices[here] - first))
        columns = [part[name].to_pylist() for name in names]
        for place, (source, *numbers) in zip(here.tolist(), zip(*columns, strict=True), strict=True):
            found[place] = Item(os.fsdecode(source), *numbers)
        first += len(batch)
    return tuple(item for item in found if item is not None)


def join(parts: Iterable[pa.Table]) -> pa.Table:
    """Put tables together in chunks of many rows, so that a chunk per class or file does not slow down the rest."""
    whole = pa.concat_tables(parts)
    return pa.concat_tables(
        whole.slice(i, _CHUNK).combine_chunks() for i in range(0, max(1, len(whole)), _CHUNK)
    )


def same_classes(expected: Sequence[str], found: Sequence[str], where: str | Path) -> None:
    """Make sure that a split has the classes of the others.

    Raises:
        FeedlineError: lists the difference.
    """
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        parts = [f"lacks {', '.join(missing[:5])}"] if missing else []
        parts += [f"has besides {', '.join(extra[:5])}"] if extra else []
        raise FeedlineError(
            f"the classes of {where} differ from the other split's: it {' and '.join(parts)} ({len(missing)} "
            f"missing, {len(extra)} extra); all splits need the same classes, or give the list with --classes FILE"
        )


def read_classes(path: Path) -> tuple[str, ...]:
    """Read a class list: one name a line, in the order of the labels.

    Raises:
        FeedlineError: no such file, an empty line, or a name twice.
    """
    try:
        # Not `splitlines`, which takes other characters for ends of lines, too; some editors put a mark in front.
        names = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FeedlineError(f"cannot read the class list {path}: {error}") from error
    if names == [""]:
        raise FeedlineError(f"the class list {path} is empty; write one class name a line")
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not name.strip() or name in seen:
            raise FeedlineError(
                f"{path}, line {number}: {name!r} is empty or there twice; write one name a line"
            )
        seen.add(name)
    return tuple(names)


def require_same_labels(listing: Listing) -> None:
    """Make sure that all splits have images of the same classes.

    Raises:
        FeedlineError: lists the difference.
    """
    present = {
        split: [listing.classes[i] for i in np.unique(flat_numbers(rows)).tolist()]
        for split, rows in listing.splits.items()
    }
    first = next(iter(present))
    for split, found in present.items():
        same_classes(present[first], found, f"split {split}")
