"""A list of paths and labels: CSV or TSV with a header, or JSON lines."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

from shard.errors import FeedlineError
from shard.items import FileReader, Listing, require_same_labels, table

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*_DELIMITERS, ".jsonl")
Row = tuple[int, str, str, str]  # line, path, label, split


def list_file(path: Path, classes: tuple[str, ...] | None) -> Listing:
    """List the images that a file names, with columns or keys `path`, `label` and perhaps `split`.

    Paths are relative to the file's folder. Where all labels are whole numbers they are the labels; otherwise
    they are class names, numbered in sorted order or as `classes` says.

    Raises:
        FeedlineError: names the line of a missing column, a missing image, a path given twice, an unknown label.
    """
    if path.suffix not in SUFFIXES:
        raise FeedlineError(f"{path} is no list; give a file that ends in one of {', '.join(SUFFIXES)}")
    found = list(_rows(path))
    if not found:
        raise FeedlineError(f"{path} lists no images; write a line with path and label for each")
    known, labels = _labels(path, found, classes)
    root = path.parent
    seen: set[str] = set()
    columns: dict[str, list[tuple[bytes, int, int, int]]] = {}
    for (line, name, _, split), label in zip(found, labels, strict=True):
        if name in seen:
            raise FeedlineError(f"{path}, line {line}: {name} is listed twice; remove one of the lines")
        seen.add(name)
        try:
            status = os.stat(os.path.join(root, name))
        except OSError as error:
            raise FeedlineError(
                f"{path}, line {line}: cannot read {name}: {error.strerror}; paths are relative to {root}"
            ) from error
        columns.setdefault(split, []).append((os.fsencode(name), label, status.st_size, status.st_mtime_ns))
    splits = {}
    for split, listed in columns.items():
        names, of, sizes, times = zip(*listed, strict=True)
        splits[split] = table(names, of, sizes, mtimes_ns=times)
    listing = Listing(kind="list", classes=known, splits=splits, reader=FileReader(str(root)))
    if classes is None:
        require_same_labels(listing)
    return listing


def _rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                for line, text in enumerate(file, start=1):
                    if text.strip():
                        yield _row(path, line, json.loads(text))
            else:
                reader = csv.DictReader(file, delimiter=_DELIMITERS[path.suffix], strict=True)
                for values in reader:
                    yield _row(path, reader.line_num, values)
    except OSError as error:
        raise FeedlineError(f"cannot read the list {path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise FeedlineError(f"{path} is not valid {path.suffix[1:].upper()} in UTF-8: {error}") from error


def _row(path: Path, line: int, values: object) -> Row:
    if not isinstance(values, dict) or any(values.get(key) in (None, "") for key in ("path", "label")):
        has = ", ".join(map(str, values)) if isinstance(values, dict) else repr(values)
        raise FeedlineError(f"{path}, line {line}: needs path and label, has {has}")
    return line, str(values["path"]), str(values["label"]), str(values.get("split") or "train")


def _labels(
    path: Path, found: list[Row], classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[int]]:
    texts = {label for _, _, label, _ in found}
    if all(text.isascii() and text.isdigit() for text in texts):
        values = {text: int(text) for text in texts}
        known = classes or tuple(str(i) for i in range(max(values.values()) + 1))
    else:
        known = classes or tuple(sorted(texts))
        values = {name: i for i, name in enumerate(known)}
    for line, name, label, _ in found:
        if values.get(label, len(known)) >= len(known):
            raise FeedlineError(
                f"{path}, line {line}: {name} has the label {label!r}, which --classes ({len(known)} classes) lacks"
            )
    return known, [values[label] for _, _, label, _ in found]
