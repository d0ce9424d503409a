"""Open a dataset that `python -m shard build` made."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shard.errors import FeedlineError
from shard.image import Policy
from shard.labels import Label, LabelLists, label_column
from shard.storage import is_remote, location, storage_errors

FORMAT = "feedline"
FORMAT_VERSION = 2
MULTI_LABEL_VERSION = 3  # of multi-label datasets, whose index has no `label`
MANIFEST = "dataset.json"
INDEX = "index.parquet"
STAGING = ".build"


@dataclass(frozen=True, slots=True)
class Split:
    """The index of one split; row i describes the sample with id i.

    Attributes:
        name: such as "train".
        root: folder of its shards.
        shards: file names of the tars; paths or URLs where somebody else's are indexed in place.
        shard_bytes: size of each tar.
        shard: int32 [N], index into `shards`.
        offset: int64 [N], byte offset of the encoded image in its tar.
        size: int64 [N], bytes of the encoded image.
        single: int64 [N], see `label`; None in a multi-label dataset.
        lists: labels of a multi-label dataset; None: see `label`.
        width: int32 [N], pixels.
        height: int32 [N], pixels.
        crc32: uint32 [N], of the encoded image.
        keys: strings [N], WebDataset keys; see `key`.
    """

    name: str
    root: Path
    shards: tuple[str, ...]
    shard_bytes: tuple[int, ...]
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    single: npt.NDArray[np.int64] | None
    lists: LabelLists | None
    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    crc32: npt.NDArray[np.uint32]
    keys: Any

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.size)

    @property
    def label(self) -> npt.NDArray[np.int64]:
        """Class of every sample, int64 [N].

        Raises:
            FeedlineError: the dataset is multi-label.
        """
        if self.single is None:
            raise FeedlineError(
                f"{self.root} is of a multi-label dataset, whose samples have no single class, as this needs; see "
                "docs/packing.md for what multi-label datasets are good for"
            )
        return self.single

    def label_of(self, i: int) -> Label:
        """Class of sample i, or its classes."""
        return int(self.label[i]) if self.lists is None else self.lists[i]

    def targets(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """What a network is to learn of samples [n]: classes, int64 [n], or multi-hot, float32 [n, classes]."""
        return self.label[ids] if self.lists is None else self.lists.multi_hot(ids)

    def by_class(self, order: npt.NDArray[np.int64], classes: int) -> list[npt.NDArray[np.int64]]:
        """Samples of every class, in an order of all; in several where they are of several."""
        if self.lists is None:
            of, labels = np.arange(len(order)), self.label[order]
        else:
            of, places = self.lists.pairs(order)
            labels = self.lists.values[places].astype(np.int64)
        by_label = np.argsort(labels, kind="stable")
        return np.split(order[of[by_label]], np.searchsorted(labels[by_label], np.arange(1, classes)))

    def class_counts(self, classes: int) -> npt.NDArray[np.int64]:
        """Samples of every class, int64 [classes]."""
        labels = self.label if self.lists is None else self.lists.values
        return np.bincount(labels, minlength=classes)

    def key(self, i: int) -> str:
        """WebDataset key of sample i."""
        return str(self.keys[i].as_py())

    def shard_path(self, i: int) -> Path:
        """Path of shard number i."""
        return shard_path(self.root, self.shards[i])

    def shard_url(self, i: int) -> str:
        """Path or URL of shard number i as text; asks no storage."""
        name = self.shards[i]
        return name if "://" in name or os.path.isabs(name) else f"{str(self.root).rstrip('/')}/{name}"


@dataclass(frozen=True, slots=True)
class Dataset:
    """An opened dataset.

    Attributes:
        root: its folder, absolute, or URL.
        classes: class names by label.
        fingerprint: hex SHA-256 that identifies the samples, their labels and their order.
        manifest: the content of dataset.json.
    """

    root: Path
    classes: tuple[str, ...]
    fingerprint: str
    manifest: dict[str, Any]

    @classmethod
    def open(cls, root: str | Path) -> Dataset:
        """Open a dataset folder; reads only its manifest.

        Raises:
            FeedlineError: not a dataset, an unfinished one, or one of another format version.
        """
        folder = location(root)
        path = folder / MANIFEST
        try:
            with storage_errors("read", path):
                manifest = json.loads(path.read_text())
        except FeedlineError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise FeedlineError(f"{error}; restore it or build the dataset again") from error
            if (folder / STAGING).exists():
                raise FeedlineError(
                    f"{root} is an unfinished build; run its `python -m shard build` command again to finish it"
                ) from error
            inside = not is_remote(folder) and (folder.absolute().parent / MANIFEST).exists()
            remedy = (
                f"it lies in one, {folder.absolute().parent}: give that"
                if inside
                else "make one: python -m shard build"
            )
            raise FeedlineError(f"{root} is no dataset ({path} does not exist); {remedy}") from error
        found = (
            (manifest.get("format"), manifest.get("format_version")) if isinstance(manifest, dict) else None
        )
        version = MULTI_LABEL_VERSION if found and manifest.get("multi_label") else FORMAT_VERSION
        if found != (FORMAT, version):
            raise FeedlineError(
                f"{path} has format and version {found}, this program reads {(FORMAT, version)}; "
                "build the dataset again or use a matching version of feedline"
            )
        if missing := [key for key in ("classes", "fingerprint", "splits") if key not in manifest]:
            raise FeedlineError(f"{path} has no {missing[0]!r}; restore it or build the dataset again")
        # Absolute: the program may change its working folder, as Hydra does, or hand the dataset to another process.
        where = folder if is_remote(folder) else folder.absolute()
        return cls(where, tuple(manifest["classes"]), manifest["fingerprint"], manifest)

    @property
    def multi_label(self) -> bool:
        """Whether a sample may be of several classes, or of none."""
        return bool(self.manifest.get("multi_label", False))

    @property
    def images(self) -> Policy:
        """How its images were judged, turned and reduced when it was built.

        Nothing was done to those of foreign shards (`python -m shard index`): the default, as they are stored.
        """
        found = self.manifest.get("settings", {}).get("images", {})
        return Policy(**{**found, "keep": tuple(found.get("keep", ()))})

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.manifest["splits"])

    def split(self, name: str) -> Split:
        """Load a split's index.

        Raises:
            FeedlineError: there is no such split, or its index is damaged.
        """
        if name not in self.split_names:
            hint = "; `python -m shard build --val 20%` holds one out" if name == "val" else ""
            raise FeedlineError(
                f"{self.root} has no split {name!r}; it has {', '.join(self.split_names)}{hint}"
            )
        about = self.manifest["splits"][name]
        several = len(self.classes) if self.multi_label else None
        split = read_split(self.root / name, about["shards"], several)
        if len(split) != about["samples"]:
            raise FeedlineError(
                f"{split.root / INDEX} has {len(split)} rows but dataset.json says {about['samples']}; build the "
                "dataset again"
            )
        return split


def shard_path(folder: Path, name: str) -> Path:
    """Path of a shard that the manifest names, in a split's folder or wherever somebody else put it."""
    return location(name) if "://" in name else folder / name


def read_split(folder: Path, shards: list[dict[str, Any]], several: int | None = None) -> Split:
    """Load the index of a split.

    Args:
        folder: of the split.
        shards: the manifest's entries.
        several: of a multi-label dataset, how many classes it has.

    Raises:
        FeedlineError: it is missing or damaged.
    """
    path = folder / INDEX
    try:
        with path.open("rb") as file:
            table = read_columns(file.read(), [*_COLUMNS, label_column(several is not None), "key"])
        columns = {c: _column(table, c, t) for c, t in _COLUMNS.items()}
        single = _column(table, "label", np.int64) if several is None else None
        lists = None if several is None else LabelLists.of(table.column("labels"), several)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise FeedlineError(f"cannot read {path}: {error}; run `python -m shard verify`") from error
    return Split(
        name=folder.name,
        root=folder,
        shards=tuple(s["name"] for s in shards),
        shard_bytes=tuple(s["bytes"] for s in shards),
        single=single,
        lists=lists,
        keys=table.column("key"),
        **columns,
    )


def read_sources(folder: Path) -> pa.ChunkedArray:
    """Names that the samples of a split had in their source: strings [N]."""
    path = folder / INDEX
    try:
        with path.open("rb") as file:
            return read_columns(file.read(), ["source"]).column("source")
    except (OSError, KeyError, pa.ArrowException) as error:
        raise FeedlineError(f"cannot read {path}: {error}; run `python -m shard verify`") from error


def read_image(split: Split, i: int) -> bytes:
    """Encoded image of sample i, out of its shard.

    Raises:
        FeedlineError: the shard cannot be read, or holds other bytes there than were packed.
    """
    path: Path = split.shard_path(int(split.shard[i]))
    with storage_errors("read", path), path.open("rb") as file:
        return image_in(file, split, i)


def image_in(shard: BinaryIO, split: Split, i: int) -> bytes:
    """Encoded image of sample i, out of its opened shard.

    Raises:
        FeedlineError: its bytes are not those that were packed.
    """
    shard.seek(int(split.offset[i]))
    data = shard.read(int(split.size[i]))
    if zlib.crc32(data) != split.crc32[i]:  # of what a shard that was cut short still has, too
        raise FeedlineError(
            f"{split.shard_url(int(split.shard[i]))} does not hold the bytes of sample {i} (key {split.key(i)}) that "
            "were packed: it is cut short or damaged; run `python -m shard verify`, and copy or build it again"
        )
    return data


_COLUMNS: dict[str, npt.DTypeLike] = {
    "shard": np.int32,
    "offset": np.int64,
    "size": np.int64,
    "width": np.int32,
    "height": np.int32,
    "crc32": np.uint32,
}


def read_columns(content: bytes, columns: list[str]) -> Any:
    """Give the columns of a Parquet file as a pyarrow.Table.

    Raises:
        KeyError: there is no such column.
        pyarrow.ArrowException: it is damaged.
    """
    # From memory and in this thread: Arrow's own may end the process (std::terminate) while the interpreter leaves.
    # `read_table` has some whatever it is told: with torch imported, 5 of 12 programs that ended then aborted.
    table = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(columns, use_threads=False)
    return table.select(columns)  # raises KeyError where one is missing, which `read` passes over


def _column(table: Any, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    column: npt.NDArray[Any] = table.column(name).to_numpy()
    return np.ascontiguousarray(column, dtype=dtype)
