"""A list of paths and labels: CSV or TSV with a header, or JSON lines."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

from shard.errors import FeedlineError
from shard.items import FileReader, Listing, require_same_labels, table
from shard.labels import SEPARATOR, Label

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*_DELIMITERS, ".jsonl")
Row = tuple[int, str, tuple[str, ...], str]  # line, path, labels (one, unless multi-label), split


def list_file(path: Path, classes: tuple[str, ...] | None, *, multi_label: bool = False) -> Listing:
    """List the images that a file names, with columns or keys `path`, `label` and perhaps `split`.

    Paths are relative to the file's folder. Where all labels are whole numbers they are the labels; otherwise
    they are class names, numbered in sorted order or as `classes` says.

    Args:
        path: of the file.
        classes: class names by label; None: found in the file.
        multi_label: whether a sample may have several labels, or none: names with | between them, or a list in JSON.

    Raises:
        FeedlineError: names the line of a missing column, a missing image, a path given twice, an unknown label.
    """
    if path.suffix not in SUFFIXES:
        raise FeedlineError(f"{path} is no list; give a file that ends in one of {', '.join(SUFFIXES)}")
    found = list(_rows(path, multi_label))
    if not found:
        raise FeedlineError(f"{path} lists no images; write a line with path and label for each")
    known, labels = _labels(path, found, classes, multi_label)
    root = path.parent
    seen: set[str] = set()
    columns: dict[str, list[tuple[bytes, Label, int, int]]] = {}
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
        splits[split] = table(names, of, sizes, mtimes_ns=times, multi_label=multi_label)
    listing = Listing(kind="list", classes=known, splits=splits, reader=FileReader(str(root)))
    if classes is None:
        require_same_labels(listing)
    return listing


def _rows(path: Path, multi_label: bool) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                for line, text in enumerate(file, start=1):
                    if text.strip():
                        yield _row(path, line, json.loads(text), multi_label)
            else:
                reader = csv.DictReader(file, delimiter=_DELIMITERS[path.suffix], strict=True)
                for values in reader:
                    yield _row(path, reader.line_num, values, multi_label)
    except OSError as error:
        raise FeedlineError(f"cannot read the list {path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise FeedlineError(f"{path} is not valid {path.suffix[1:].upper()} in UTF-8: {error}") from error


def _row(path: Path, line: int, values: object, multi_label: bool) -> Row:
    empty = (None,) if multi_label else (None, "")
    if not isinstance(values, dict) or values.get("path") in (None, "") or values.get("label") in empty:
        has = ", ".join(map(str, values)) if isinstance(values, dict) else repr(values)
        raise FeedlineError(f"{path}, line {line}: needs path and label, has {has}")
    label, split = values["label"], str(values.get("split") or "train")
    if multi_label:
        return line, str(values["path"]), _names(path, line, label), split
    if isinstance(label, list):
        raise FeedlineError(f"{path}, line {line}: label is a list, {label}; give --multi-label")
    return line, str(values["path"]), (str(label),), split


def _names(path: Path, line: int, label: object) -> tuple[str, ...]:
    """Labels of a multi-label sample."""
    given: list[object]
    if isinstance(label, str):
        given = [*label.split(SEPARATOR)] if label.strip() else []
    else:
        given = label if isinstance(label, list) else [label]
    names = tuple("" if isinstance(one, list | dict | None) else str(one).strip() for one in given)
    if not all(names) or len(set(names)) < len(names):
        raise FeedlineError(
            f"{path}, line {line}: label is {label!r}, with an empty name, one that is there twice, or what is no "
            f"name; write each class once, as in red{SEPARATOR}left"
        )
    return names


def _labels(
    path: Path, found: list[Row], classes: tuple[str, ...] | None, multi_label: bool
) -> tuple[tuple[str, ...], list[Label]]:
    texts = {label for _, _, labels, _ in found for label in labels}
    if not texts:
        raise FeedlineError(f"{path} names no class in any line; write them into label")
    if all(text.isascii() and text.isdigit() for text in texts):
        values = {text: int(text) for text in texts}
        known = classes or tuple(str(i) for i in range(max(values.values()) + 1))
    else:
        known = classes or tuple(sorted(texts))
        values = {name: i for i, name in enumerate(known)}
    for line, name, labels, _ in found:
        for label in labels:
            if values.get(label, len(known)) >= len(known):
                raise FeedlineError(
                    f"{path}, line {line}: {name} has the label {label!r}, which --classes ({len(known)} classes) lacks"
                )
    if multi_label:
        return known, [sorted({values[label] for label in labels}) for _, _, labels, _ in found]
    return known, [values[label] for _, _, (label,), _ in found]
