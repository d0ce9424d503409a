"""Check a finished dataset against itself: checksums, tar headers, index, labels, and images if asked."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from shard.dataset import INDEX, MANIFEST, Dataset, Split
from shard.errors import FeedlineError
from shard.image import BadImageError, check
from shard.index import CHECKSUMS, file_sha256
from shard.pack import IDX_VERSION


def verify(root: str | Path, *, decode: bool = False) -> list[str]:
    """Return every problem found, one line each; empty if the dataset is sound.

    Checked: size and SHA-256 of every file; the manifest's totals; for each sample the tar headers, CRC-32
    and label against index.parquet; the DALI index against the tar; with `decode` also every image.

    Raises:
        FeedlineError: there is no dataset to check.
    """
    root = Path(root)
    problems = list(_check_sums(root))
    try:
        dataset = Dataset.open(root)
        for name in dataset.split_names:
            split = dataset.split(name)
            problems += _check_labels(split, len(dataset.classes))
            for number in range(len(split.shards)):
                problems += _check_shard(split, number, decode=decode)
    except FeedlineError as error:
        if not problems:
            raise
        problems.append(str(error))
    return problems


def _check_sums(root: Path) -> Iterator[str]:
    path = root / CHECKSUMS
    if not (root / MANIFEST).exists() and not path.exists():
        Dataset.open(root)  # raises with the right words
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        yield f"{path}: {error}"
        return
    listed = set()
    for line in lines:
        expected, _, name = line.partition("  ")
        listed.add(name)
        file = root / name
        if not file.is_file():
            yield f"{path} lists {name!r}, which does not exist"
        elif file_sha256(file) != expected:
            yield f"{file}: SHA-256 differs from {CHECKSUMS}"
    found = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} - {CHECKSUMS}
    for name in sorted(found - listed):
        yield f"{root / name}: not listed in {CHECKSUMS}"
    if MANIFEST not in listed:
        yield f"{path} does not list {MANIFEST}"


def _check_labels(split: Split, num_classes: int) -> Iterator[str]:
    for i in ((split.label < 0) | (split.label >= num_classes)).nonzero()[0].tolist():
        yield f"{split.root / INDEX}: sample {i} has label {split.label[i]}, the dataset {num_classes} classes"


def _check_shard(split: Split, number: int, *, decode: bool) -> Iterator[str]:
    path = split.shard_path(number)
    rows = (split.shard == number).nonzero()[0].tolist()
    idx = [f"{IDX_VERSION} {len(rows)}"]
    try:
        with tarfile.open(path, "r:") as tar:
            members = {member.name: member for member in tar}
            for i in rows:
                key = split.key(i)
                trio = [members.pop(f"{key}.{suffix}", None) for suffix in ("cls", "jpg", "json")]
                if None in trio:
                    yield f"{path}: key {key} of {INDEX} is not complete in the tar"
                    continue
                files = [member for member in trio if member is not None]
                idx.append(
                    " ".join(f"{m.name.split('.')[1]} {m.offset_data} {m.size} {m.name}" for m in files)
                )
                yield from _check_sample(split, i, tar, files, decode=decode)
            if members:
                yield f"{path}: holds {len(members)} members that {INDEX} lacks, such as {next(iter(members))}"
    except (OSError, tarfile.TarError) as error:
        yield f"{path}: {error}"
        return
    if path.with_suffix(".idx").read_bytes() != ("\n".join(idx) + "\n").encode():
        yield f"{path.with_suffix('.idx')}: does not fit the tar"


def _check_sample(
    split: Split, i: int, tar: tarfile.TarFile, members: list[tarfile.TarInfo], *, decode: bool
) -> Iterator[str]:
    where = f"{split.shard_path(int(split.shard[i]))}: key {split.key(i)}"
    cls, image, about = members
    label, data, text = (file.read() for file in (tar.extractfile(m) for m in members) if file is not None)
    if (image.offset_data, image.size) != (split.offset[i], split.size[i]):
        here, there = f"{image.offset_data} + {image.size}", f"{split.offset[i]} + {split.size[i]}"
        yield f"{where}: lies at offset + bytes {here}, {INDEX} says {there}"
    if zlib.crc32(data) != split.crc32[i]:
        yield f"{where}: CRC-32 of the image differs from {INDEX}"
    if label != str(split.label[i]).encode():
        yield f"{where}: {cls.name} says {label.decode(errors='replace')}, {INDEX} {split.label[i]}"
    try:
        json.loads(text)
    except ValueError as error:
        yield f"{where}: {about.name}: {error}"
    if decode:
        try:
            found = check(data)
        except BadImageError as error:
            yield f"{where}: {error}"
            return
        if (found.width, found.height) != (split.width[i], split.height[i]):
            yield f"{where}: is {found.width} x {found.height}, {INDEX} says {split.width[i]} x {split.height[i]}"
