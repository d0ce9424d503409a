"""Sources of images: what SRC is, what identifies it, and the listing of its samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shard.errors import FeedlineError
from shard.items import SCHEMA, FileReader, Listing, join, read_classes, require_same_labels
from shard.labels import flat_numbers
from shard.sources import lists, parquet, webdataset
from shard.sources.folders import list_folders
from shard.sources.ilsvrc import TRAIN, VAL, list_ilsvrc
from shard.sources.inputs import Input, find_inputs
from shard.sources.own import agree, numbered, own_classes

_LOSSLESS = ("utf-8", "surrogateescape")  # file names may hold bytes that are no UTF-8
KINDS = ("folders", "ilsvrc", "list", "parquet", "webdataset")
# Runs a function over inputs, perhaps in other processes, and gives the results in order.
Map = Callable[[Callable[[Input, Path], Any], Sequence[Input]], Iterable[Any]]


@dataclass(slots=True, kw_only=True)
class Source:
    """A source before its samples are known one by one.

    Attributes:
        root: what was given.
        kind: one of `KINDS`.
        classes: the class list, if given from outside.
        splits: the splits wanted; None: all.
        listed: the listing, where it costs nothing but looking at names and sizes.
        inputs: the files it consists of, where it takes reading them to list their samples.
        multi_label: whether a sample may be of several classes, or of none.
    """

    root: str
    kind: str
    classes: tuple[str, ...] | None
    splits: tuple[str, ...] | None
    listed: Listing | None = None
    inputs: tuple[Input, ...] = ()
    multi_label: bool = False

    def stamp(self, *, times: bool) -> str:
        """Hex digest of what the source consists of: names, labels and sizes; with `times` also when changed."""
        about = (self.kind, self.classes, self.splits, *(["multi-label"] if self.multi_label else []))
        digest = hashlib.blake2b(repr(about).encode(), digest_size=16)
        for one in self.inputs:
            version = one.version if times else ""
            digest.update(f"{one.name}\0{one.split}\0{one.size_bytes}\0{version}\n".encode())
        if self.listed is not None:
            reader = (
                self.listed.reader
            )  # a generator's settings are what it consists of; of files, only the names
            digest.update(repr((self.listed.classes, reader if self.kind == "synth" else "")).encode())
            digest.update("\0".join(sorted(row["source"] for row in self.listed.ignored)).encode(*_LOSSLESS))
            for split in sorted(self.listed.splits):
                digest.update(split.encode())
                _update(digest, self.listed.splits[split], times=times)
        return digest.hexdigest()

    def listing(self, run: Map) -> Listing:
        """List the samples; `run` has a folder for the files of inputs that cannot be read at random.

        Raises:
            FeedlineError: an input is damaged, a label is unknown, or splits have different classes.
        """
        found = self.listed
        if found is None:
            found = self._read_parquet(run) if self.kind == "parquet" else self._read_shards(run)
        if self.splits is not None:
            if missing := [name for name in self.splits if name not in found.splits]:
                raise FeedlineError(
                    f"{self.root} has no split {missing[0]!r}; it has {', '.join(sorted(found.splits))}"
                )
            found.splits = {name: found.splits[name] for name in self.splits}
            found.ignored = [row for row in found.ignored if row["split"] in self.splits]
        if empty := [name for name, rows in found.splits.items() if not len(rows)]:
            raise FeedlineError(
                f"split {empty[0]!r} of {self.root} has no samples; choose others with --splits"
            )
        return found

    def _read_parquet(self, run: Map) -> Listing:
        parts, containers, names = [], [], set()
        for rows, path, classes in run(partial(parquet.spool, multi_label=self.multi_label), self.inputs):
            parts.append(rows)
            containers.append(str(path))
            names.add(classes)
        if len(names) > 1:
            raise FeedlineError(
                f"the files of {self.root} name different classes; pack them apart, or give --classes"
            )
        return self._joined(parts, containers, self.classes or names.pop(), [], {})

    def _read_shards(self, run: Map) -> Listing:
        # Before the shards are read: it may be an error, and remote ones take long.
        classes = self.classes or own_classes(self.root, self.inputs)
        parts, containers = [], []
        ignored: list[dict[str, str]] = []
        names: dict[int, str] = {}
        for one, found in zip(self.inputs, run(webdataset.scan, self.inputs), strict=True):
            if self.classes is None:
                agree(names, one.url, found.named, classes)
            parts.append(found.rows)
            containers.append(str(found.path))
            ignored += found.unusable
        return self._joined(parts, containers, classes, ignored, names)

    def _joined(
        self,
        parts: list[pa.Table],
        containers: list[str],
        classes: tuple[str, ...] | None,
        ignored: list[dict[str, str]],
        names: Mapping[int, str],
    ) -> Listing:
        splits: dict[str, list[pa.Table]] = {}
        for number, (one, rows) in enumerate(zip(self.inputs, parts, strict=True)):
            here = pa.array(np.full(len(rows), number, np.int32))
            splits.setdefault(one.split, []).append(
                rows.set_column(SCHEMA.get_field_index("container"), "container", here)
            )
        tables = {split: join(rows) for split, rows in splits.items()}
        wanted = [
            flat_numbers(rows) for split, rows in tables.items() if not self.splits or split in self.splits
        ]
        labels = np.concatenate(wanted) if wanted else np.zeros(0, np.int64)
        if not len(labels):
            raise FeedlineError(f"{self.root} holds no sample with an image and a label")
        known = classes or numbered(names, int(labels.max()) + 1)
        if labels.min() < 0 or labels.max() >= len(known):
            wrong = int(labels.min() if labels.min() < 0 else labels.max())
            raise FeedlineError(
                f"{self.root} has the label {wrong}, but {len(known)} classes; leave out a split without labels "
                f"with --splits (it has {', '.join(sorted(tables))}), or give the right list with --classes"
            )
        reader = FileReader("", tuple(containers))
        listing = Listing(kind=self.kind, classes=known, splits=tables, reader=reader, ignored=ignored)
        if classes is None:
            require_same_labels(listing)
        return listing


def open_source(
    root: str,
    kind: str = "auto",
    classes: str | Path | None = None,
    splits: Sequence[str] | None = None,
    *,
    multi_label: bool = False,
) -> Source:
    """Find out what `root` is, and look at it.

    Args:
        root: folder, file, glob or fsspec URL.
        kind: one of `KINDS`, or "auto".
        classes: file with the class list.
        splits: splits to take; None: all.
        multi_label: whether a sample may be of several classes, or of none; for lists and Parquet.

    Raises:
        FeedlineError: nothing there, or nothing that can be packed.
    """
    names = read_classes(Path(classes)) if classes is not None else None
    kind = detect(root) if kind == "auto" else kind
    if kind not in KINDS:
        raise FeedlineError(f"source is {kind!r}; choose one of auto, {', '.join(KINDS)}")
    if multi_label and kind not in ("list", "parquet"):
        raise FeedlineError(
            f"--multi-label is for lists and Parquet, whose samples can name several classes; {root} is a source of "
            f"kind {kind}"
        )
    source = Source(
        root=root,
        kind=kind,
        classes=names,
        splits=tuple(splits) if splits else None,
        multi_label=multi_label,
    )
    if kind in ("parquet", "webdataset"):
        source.inputs = _inputs(root, kind, source.splits)
    else:
        source.listed = _listed(root, kind, names, multi_label)
    return source


def _inputs(root: str, kind: str, splits: tuple[str, ...] | None) -> tuple[Input, ...]:
    found = find_inputs(root, parquet.SUFFIXES if kind == "parquet" else webdataset.SUFFIXES)
    inputs = tuple(one for one in found if splits is None or one.split in splits)
    if not inputs:
        have = ", ".join(sorted({one.split for one in found}))
        raise FeedlineError(f"{root} has no split {splits[0] if splits else ''!r}; it has {have}")
    return inputs


def _listed(root: str, kind: str, classes: tuple[str, ...] | None, multi_label: bool) -> Listing:
    if "://" in root:
        raise FeedlineError(
            f"{root}: a source of kind {kind} must lie on a disk; only Parquet and WebDataset may be URLs"
        )
    if kind == "list":
        return lists.list_file(Path(root), classes, multi_label=multi_label)
    return list_ilsvrc(Path(root), classes) if kind == "ilsvrc" else list_folders(Path(root), classes)


def detect(root: str) -> str:
    """Kind of a source, by what lies there."""
    if root.endswith(lists.SUFFIXES):
        return "list"
    if root.endswith(parquet.SUFFIXES):
        return "parquet"
    if root.endswith(webdataset.SUFFIXES):
        return "webdataset"
    if "://" in root or "*" in root:
        names = [one.name for one in find_inputs(root, (*parquet.SUFFIXES, *webdataset.SUFFIXES))]
    else:
        path = Path(root)
        if not path.exists():
            raise FeedlineError(
                f"{root} does not exist; give a folder, a list file, tars, Parquet files or a URL"
            )
        if (path / TRAIN).exists() or (path / VAL).exists():
            return "ilsvrc"
        names = list(_first_files(path))
    for kind, suffixes in (("webdataset", webdataset.SUFFIXES), ("parquet", parquet.SUFFIXES)):
        if any(name.endswith(suffixes) for name in names):
            return kind
    return "folders"


def _first_files(path: Path) -> Iterator[str]:
    """File names in a folder, and a few of those right below it."""
    for entry in os.scandir(path):
        if entry.is_file():
            yield entry.name
        elif entry.is_dir() and not entry.name.startswith("."):
            yield from (inner.name for inner in islice(os.scandir(entry.path), 100))


def _update(digest: Any, rows: pa.Table, *, times: bool) -> None:
    """Feed a table into a digest, in an order that does not depend on the file system's."""
    order = pc.sort_indices(rows, [("source", "ascending")])
    for first in range(0, len(order), 1 << 18):
        part = rows.take(order[first : first + (1 << 18)])
        for name in part["source"].to_pylist():
            digest.update(name + b"\0")
        if "labels" in rows.column_names:
            digest.update(repr(part["labels"].to_pylist()).encode())
        else:
            digest.update(part["label"].to_numpy().tobytes())
        for column in ("size", *(["mtime_ns"] if times else [])):
            digest.update(part[column].to_numpy().tobytes())
