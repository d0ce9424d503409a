"""WebDataset shards: our own or somebody else's, to be packed anew."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from shard.items import NO_SAMPLE, UNREAD_SUFFIXES, table
from shard.labels import Label, parse_cls, require_single
from shard.sources.folders import IMAGE_SUFFIXES
from shard.sources.inputs import Input
from shard.sources.tars import Member, members
from shard.storage import fetch

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_ANNOTATION_LIMIT = 1 << 20  # bytes of a .cls or .json worth reading


class Sample(NamedTuple):
    """A sample of a shard.

    Attributes:
        key: common part of its members' names.
        image: its picture.
        label: its class; a list of them in a multi-label dataset.
        source: name that our own packer gave it, or None.
        named: its label and that class's name, as our own packer wrote it; or empty.
        members: all of its files.
    """

    key: str
    image: Member
    label: Label
    source: str | None
    named: set[tuple[int, str]]
    members: list[Member]


class Unusable(NamedTuple):
    """A sample without picture or label."""

    key: str
    reason: str


class Scanned(NamedTuple):
    """What one shard holds.

    Attributes:
        rows: its images.
        path: the local file they lie in.
        unusable: rows for rejected.jsonl.
        named: labels with their classes' names, as far as the samples tell them.
    """

    rows: pa.Table
    path: Path
    unusable: list[dict[str, str]]
    named: set[tuple[int, str]]


def scan(source: Input, staging: Path) -> Scanned:
    """List one shard."""
    path = local(source, staging)
    names: list[bytes] = []
    rows: list[tuple[Label, int, int]] = []
    unusable: list[dict[str, str]] = []
    named: set[tuple[int, str]] = set()
    with path.open("rb") as file:
        for sample in samples(file, source.url):
            name = f"{source.name}/{sample.key}"
            if isinstance(sample, Unusable):
                unusable.append({"source": name, "split": source.split, "reason": sample.reason})
                continue
            named |= sample.named
            names.append(os.fsencode(sample.source or name))
            rows.append((sample.label, sample.image.size, sample.image.offset))
    labels, sizes, offsets = zip(*rows, strict=True) if rows else ((), (), ())
    listed = table(names, labels, sizes, containers=0, offsets=offsets)
    return Scanned(listed, path, unusable, named)


def local(source: Input, staging: Path) -> Path:
    """Path of the plain tar on this machine, fetched or decompressed into `staging` where it must be."""
    if source.is_remote or not source.url.endswith(".tar"):
        return fetch(source.url, source.spooled(staging, ".tar"))
    return Path(source.url)


def samples(file: BinaryIO, path: str, *, multi_label: bool = False) -> Iterator[Sample | Unusable]:
    """Samples of an open shard, in order; of one of a multi-label dataset of ours their labels are lists.

    Raises:
        FeedlineError: not a tar, cut off, or one of a multi-label dataset where none is expected.
    """
    for key, group in groupby(members(file, path), key=lambda member: key_of(member.name)):
        yield _sample(key, list(group), file, path, multi_label)


def key_of(name: str) -> str:
    """Webdataset's rule: up to the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _sample(key: str, files: list[Member], file: BinaryIO, path: str, multi_label: bool) -> Sample | Unusable:
    by_suffix = {member.name[len(key) :].lower(): member for member in files}
    if len(by_suffix) < len(files):
        return Unusable(key, "the same member twice in a row")
    images = [m for suffix, m in by_suffix.items() if suffix.endswith(IMAGE_SUFFIXES)]
    if not images and not any(s.endswith((".cls", ".json", *UNREAD_SUFFIXES)) for s in by_suffix):
        return Unusable(key, NO_SAMPLE)
    if len(images) != 1:
        return Unusable(key, f"{len(images) or 'no'} images in one sample")
    about: object = None
    if (member := by_suffix.get(".json")) is not None:
        try:
            about = json.loads(_read(file, member))
        except ValueError:
            return Unusable(key, "its .json is not valid")
    known = about if isinstance(about, dict) else {}
    if not multi_label and known.keys() == {"classes", "source"}:  # as our packer writes it
        require_single(True, f"packing or indexing {path} anew", "pack the list that it was made of")
    label: object = known.get("label")
    if (member := by_suffix.get(".cls")) is not None:
        label = _read(file, member).decode("ascii", "replace").strip()
    number: Label | None = None
    if multi_label:
        number = parse_cls(label) if isinstance(label, str) else None
    elif not isinstance(label, bool) and str(label).isdecimal():
        number = int(str(label))
    if number is None:
        expected = "whole numbers with commas between them" if multi_label else "a whole number"
        return Unusable(key, f"no label: .cls or .json's label is {label!r}, expected {expected}")
    source, name = known.get("source"), known.get("class")
    named: set[tuple[int, str]] = set()
    if known.keys() == {"class", "source"} and isinstance(number, int) and isinstance(name, str):
        named.add((number, name))
    return Sample(key, images[0], number, source if isinstance(source, str) else None, named, files)


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)  # tarfile seeks to where it was by itself
    return file.read(min(member.size, _ANNOTATION_LIMIT))
