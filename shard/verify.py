"""Check a finished dataset against itself: checksums, tar headers, index, labels, and images if asked."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from shard.dataset import INDEX, MANIFEST, Dataset, shard_path
from shard.errors import FeedlineError
from shard.execute import start_workers
from shard.image import KEEPABLE, BadImageError, Policy, check
from shard.index import CHECKSUMS
from shard.labels import label_column, numbers
from shard.pack import IDX_VERSION, Row
from shard.sources.webdataset import Sample, Unusable, samples
from shard.storage import file_sha256, is_remote, local_copy, location, storage_errors

# What a packed image may be: everything else would have been mended.
_AS_STORED = Policy(keep=KEEPABLE, exif="keep")
Progress = Callable[[str, int, int], None]


class ShardCheck(NamedTuple):
    """A shard to check.

    Attributes:
        folder: of its split.
        number: in the split.
        path: of the tar.
        about: its entry in the manifest.
        listed: whether SHA256SUMS has the manifest's digest.
        indexed: whether the indexes are sound, so that the tar can be compared with them.
        num_classes: of the dataset.
        multi_label: whether its samples have lists of labels.
    """

    folder: Path
    number: int
    path: Path
    about: dict[str, Any]
    listed: bool
    indexed: bool
    num_classes: int
    multi_label: bool


def verify(
    root: str | Path,
    *,
    decode: bool = False,
    jobs: int | None = 1,
    progress: Progress = lambda what, done, total: None,
) -> list[str]:
    """Return every problem found, one line each; empty if the dataset is sound.

    Checked: size and SHA-256 of every file; the manifest's totals; for each sample the tar headers, CRC-32
    and label against index.parquet; the DALI index against the tar; with `decode` also every image.

    Args:
        root: folder or URL of the dataset.
        decode: also decode all images.
        jobs: processes; None: one more than cores.
        progress: called as the work goes on.

    Raises:
        FeedlineError: there is no dataset to check.
    """
    folder = location(root)
    if not (folder / CHECKSUMS).exists():
        Dataset.open(folder)  # raises with the right words if there is none at all
    sums, problems = _read_sums(folder)
    wrong = dict(_wrong_files(folder, sums))
    problems += [*wrong.values(), *_unlisted(folder, sums)]
    if MANIFEST in wrong or MANIFEST not in sums:
        return sorted(problems)  # nothing it says can be relied on
    checks = list(_shard_checks(Dataset.open(folder), sums, wrong))
    with start_workers(None if jobs is None else min(jobs, max(1, len(checks)))) as pool:
        tagged = ((one.path, partial(_itself, one)) for one in checks)
        for done, (_, found) in enumerate(
            pool.unordered(partial(_check_shard, decode=decode), tagged), start=1
        ):
            problems += found
            progress("checking shards", done, len(checks))
    return sorted(problems)


def _itself(one: ShardCheck) -> ShardCheck:
    return one


def _read_sums(root: Path) -> tuple[dict[str, str], list[str]]:
    path = root / CHECKSUMS
    try:
        with storage_errors("read", path):
            text = path.read_bytes().decode()
    except FeedlineError as error:
        return {}, [str(error)]
    lines = text.split("\n")  # not splitlines, which takes other characters for ends of lines, too
    if lines.pop():
        return {}, [f"{path}: does not end with a line"]
    parts = [line.partition("  ") for line in lines]
    sums = {name: digest for digest, _, name in parts}
    problems = [] if len(sums) == len(lines) else [f"{path}: lists a file twice"]
    return sums, problems + ([] if MANIFEST in sums else [f"{path} does not list {MANIFEST}"])


def _wrong_files(root: Path, sums: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Files besides tars that are missing or differ from their checksum: name and problem."""
    for name, expected in sums.items():
        path = root / name
        try:
            with storage_errors("read", path):
                if not path.is_file():
                    yield name, f"{root / CHECKSUMS} lists {name!r}, which does not exist"
                elif not name.endswith(".tar") and file_sha256(path) != expected:
                    yield name, f"{path}: SHA-256 differs from {CHECKSUMS}"
        except FeedlineError as error:
            yield name, str(error)


def _unlisted(root: Path, sums: dict[str, str]) -> Iterator[str]:
    prefix = f"{root}/"
    found = {str(path).removeprefix(prefix) for path in root.rglob("*") if path.is_file()} - {CHECKSUMS}
    for name in sorted(found - set(sums)):
        yield f"{root / name}: not listed in {CHECKSUMS}"


def _shard_checks(dataset: Dataset, sums: dict[str, str], wrong: dict[str, str]) -> Iterator[ShardCheck]:
    by_digest = set(sums.values())
    for name in dataset.split_names:
        folder = dataset.root / name
        for number, about in enumerate(dataset.manifest["splits"][name]["shards"]):
            path = shard_path(folder, about["name"])
            yield ShardCheck(
                folder=folder,
                number=number,
                path=path,
                about=about,
                listed=is_remote(path) or about["sha256"] in by_digest,
                indexed=f"{name}/{INDEX}" not in wrong and f"{name}/{path.stem}.idx" not in wrong,
                num_classes=len(dataset.classes),
                multi_label=dataset.multi_label,
            )


def _idx(one: ShardCheck) -> Path:
    return one.folder / f"{one.path.stem}.idx"


def _check_shard(one: ShardCheck, *, decode: bool) -> list[str]:
    """Problems of one shard; runs in a worker process."""
    problems: list[str] = []
    try:
        with storage_errors("read", one.path), local_copy(one.path) as path:
            problems += _check_sums(one, path)
            if one.indexed:
                problems += _check_samples(one, path, decode=decode)
    except FeedlineError as error:
        problems.append(str(error))
    return problems


def _check_sums(one: ShardCheck, path: Path) -> Iterator[str]:
    if not path.is_file():
        raise FeedlineError(f"{one.path} does not exist")
    if path.stat().st_size != one.about["bytes"]:
        yield f"{one.path}: has {path.stat().st_size} bytes, {MANIFEST} says {one.about['bytes']}"
    if file_sha256(path) != one.about["sha256"]:
        yield f"{one.path}: SHA-256 differs from {MANIFEST}"
    if not one.listed:
        yield f"{one.path}: {CHECKSUMS} and {MANIFEST} have different SHA-256"


def _check_samples(one: ShardCheck, path: Path, *, decode: bool) -> Iterator[str]:
    rows = _rows(one)
    if len(rows) != one.about["samples"]:
        yield f"{one.path}: has {len(rows)} samples in {INDEX}, {MANIFEST} says {one.about['samples']}"
    idx = [f"{IDX_VERSION} {len(rows)}"]
    with path.open("rb") as file:
        found = samples(file, str(one.path), multi_label=one.multi_label)
        if one.about.get("foreign", False):  # these may hold samples that the index leaves out
            keys = {row.key for row in rows}
            found = (sample for sample in found if sample.key in keys)
        for sample, row in zip_longest(found, rows):
            where = f"{one.path}: key {sample.key if row is None else row.key}"
            if row is None or sample is None or sample.key != row.key:
                yield f"{where}: {INDEX} and tar have different samples from here on"
                return
            if isinstance(sample, Unusable):
                yield f"{where}: {sample.reason}"
                return
            idx.append(idx_line(sample))
            file.seek(row.offset)
            yield from (
                f"{where}: {text}"
                for text in _compare(sample, row, file.read(row.size), one.num_classes, decode)
            )
    if _idx(one).read_bytes() != ("\n".join(idx) + "\n").encode():
        yield f"{_idx(one)}: does not fit the tar"


def idx_line(sample: Sample) -> str:
    """A sample's line of a DALI index: extension, offset, size and name of each member."""
    return " ".join(f"{m.name[len(sample.key) + 1 :]} {m.offset} {m.size} {m.name}" for m in sample.members)


def _rows(one: ShardCheck) -> list[Row]:
    """Rows of a shard: the index has a row group for each."""
    path = one.folder / INDEX
    try:
        with path.open("rb") as handle, pq.ParquetFile(handle) as file:
            # No threads of Arrow's: they may end the process (std::terminate) while the interpreter leaves.
            table = file.read_row_group(one.number, use_threads=False)
        if any(number != one.number for number in table["shard"].to_pylist()):
            raise ValueError(f"row group {one.number} is of another shard")
        names = [label_column(one.multi_label) if name == "label" else name for name in Row._fields]
        columns = [table[name].to_pylist() for name in names]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise FeedlineError(f"cannot read {path}: {error}") from error
    return [Row(*values) for values in zip(*columns, strict=True)]


def _compare(sample: Sample, row: Row, data: bytes, num_classes: int, decode: bool) -> Iterator[str]:
    if (sample.image.offset, sample.image.size) != (row.offset, row.size):
        here = f"{sample.image.offset} + {sample.image.size}"
        yield f"lies at offset + bytes {here}, {INDEX} says {row.offset} + {row.size}"
    if zlib.crc32(data) != row.crc32:
        yield f"CRC-32 of the image differs from {INDEX}"
    if sample.label != row.label:
        yield f"its label in the tar is {sample.label}, {INDEX} says {row.label}"
    if not all(0 <= label < num_classes for label in numbers(row.label)):
        yield f"has label {row.label}, the dataset {num_classes} classes"
    if decode:
        try:
            found = check(data, _AS_STORED)
        except BadImageError as error:
            yield str(error)
            return
        if (found.width, found.height) != (row.width, row.height):
            yield f"is {found.width} x {found.height}, {INDEX} says {row.width} x {row.height}"
