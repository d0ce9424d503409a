"""Parquet with embedded images, the layout of the Hugging Face hub: image struct<bytes, path>, label int.

Rows of a Parquet file cannot be read one by one, and the order of a dataset is random. So each file is read
once, front to back, and its images are laid end to end in a file of the staging folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shard.errors import FeedlineError
from shard.items import table
from shard.labels import Label
from shard.sources.inputs import Input
from shard.storage import write_whole

SUFFIXES = (".parquet",)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; `classes` are the names in the file's own metadata, if there."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def columns(schema: pa.Schema, url: str, multi_label: bool = False) -> Columns:
    """Find image and label column; with `multi_label` the one with lists of labels.

    Raises:
        FeedlineError: none, or several that could be meant.
    """
    features = (
        json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    )
    kinds = {name: value.get("_type") for name, value in features.items() if isinstance(value, dict)}
    images = [f.name for f in schema if kinds.get(f.name) == "Image"] or [
        f.name for f in schema if _holds_bytes(f)
    ]
    if multi_label:
        labels = [f.name for f in schema if _holds_labels(f)]
    else:
        labels = [f.name for f in schema if kinds.get(f.name) == "ClassLabel"] or [
            f.name for f in schema if pa.types.is_integer(f.type)
        ]
    form = "lists of whole numbers" if multi_label else "whole numbers (lists of them need --multi-label)"
    chosen = []
    for what, found, usual in (("image", images, "image"), ("label", labels, "label")):
        if usual in found or len(found) == 1:
            chosen.append(usual if usual in found else found[0])
            continue
        raise FeedlineError(
            f"{url} has {'no' if not found else 'several'} {what} columns ({', '.join(schema.names)}); expected "
            f"one named {usual!r}: image as struct<bytes, path> or binary, label as {form}"
        )
    names = _names(features.get(chosen[1]))
    return Columns(chosen[0], chosen[1], tuple(names) if names else None)


def spool(
    source: Input, staging: Path, *, multi_label: bool = False
) -> tuple[pa.Table, Path, tuple[str, ...] | None]:
    """Lay the images of one file end to end; gives their table, the file they lie in, and the class names.

    Raises:
        FeedlineError: not Parquet, wrong columns, an image without bytes, or the disk is full.
    """
    data = source.spooled(staging, ".images")
    index = source.spooled(staging, ".lists.parquet" if multi_label else ".rows.parquet")
    try:
        with pq.ParquetFile(source.open(staging), memory_map=not source.is_remote) as file:
            found = columns(file.schema_arrow, source.url, multi_label)
            if not index.exists():
                with write_whole(data, staging) as out:
                    listed = _copy_images(file, found, source, out, multi_label)
                with write_whole(index, staging) as out:
                    pq.write_table(listed, out)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(source, error) from error
    if source.is_remote:
        source.spooled(staging, ".fetched").unlink(missing_ok=True)
    with pq.ParquetFile(
        index, pre_buffer=False
    ) as file:  # not `read_table`, which starts threads all the same
        return file.read(use_threads=False), data, found.classes


def _unreadable(source: Input, error: Exception) -> FeedlineError:
    why = " ".join(str(error).split())
    return FeedlineError(f"cannot read {source.url} as Parquet: {why}; download it again")


def _batches(file: pq.ParquetFile, found: Columns, source: Input) -> Iterator[pa.RecordBatch]:
    """Rows of a file, some at a time; an error in it is told as such, and not as one of the file that is written."""
    try:
        # No threads of Arrow's: they may end the process (std::terminate) while the interpreter leaves.
        yield from file.iter_batches(batch_size=64, columns=[found.image, found.label], use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(source, error) from error


def _copy_images(
    file: pq.ParquetFile, found: Columns, source: Input, out: Any, multi_label: bool
) -> pa.Table:
    names: list[bytes] = []
    labels: list[Label] = []
    sizes: list[int] = []
    for batch in _batches(file, found, source):
        images, of = batch.column(found.image), batch.column(found.label)
        paths = [None] * len(images)
        if pa.types.is_struct(images.type):
            if images.type.get_field_index("path") >= 0:
                paths = pc.struct_field(images, "path").to_pylist()
            images = pc.struct_field(images, "bytes")
        for image, label, path in zip(images, of, paths, strict=True):
            row = len(names)
            if not image.is_valid or not label.is_valid:
                raise FeedlineError(
                    f"{source.url}, row {row}: no {'label' if image.is_valid else 'image bytes'}; export the dataset "
                    "with embedded images and labels"
                )
            view = image.as_buffer()
            out.write(view)
            sizes.append(view.size)
            labels.append(
                _sorted(label.as_py(), f"{source.url}, row {row}") if multi_label else label.as_py()
            )
            suffix = f"-{os.path.basename(path)}" if path else ""
            names.append(f"{source.name}/{row:08d}{suffix}".encode())
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + size)
    return table(names, labels, sizes, containers=0, offsets=offsets[:-1], multi_label=multi_label)


def _names(feature: Any) -> list[str] | None:
    """Class names of a feature as the hub describes it: ClassLabel, or a list of it in either of its spellings."""
    inner = feature[0] if isinstance(feature, list) and feature else feature
    if not isinstance(inner, dict):
        return None
    found: list[str] | None = inner.get("names") or _names(inner.get("feature"))
    return found


def _sorted(labels: list[int | None], where: str) -> list[int]:
    found = sorted({label for label in labels if label is not None})
    if len(found) < len(labels):
        raise FeedlineError(
            f"{where}: its labels {labels} have one twice or an empty one; write each class once"
        )
    return found


def _holds_labels(column: pa.Field) -> bool:
    """Whether its values are lists of whole numbers, in whichever of Arrow's kinds of lists."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(kind(column.type) for kind in kinds) and pa.types.is_integer(column.type.value_type)


def _holds_bytes(column: pa.Field) -> bool:
    kind = column.type
    if pa.types.is_struct(kind) and (place := kind.get_field_index("bytes")) >= 0:
        kind = kind.field(place).type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
