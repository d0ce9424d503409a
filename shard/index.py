"""Write what stands beside the shards: index.parquet, the lists, checksums and the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from shard.dataset import FORMAT, FORMAT_VERSION, INDEX, MANIFEST, MULTI_LABEL_VERSION
from shard.labels import LISTS, label_column
from shard.pack import Record, Row
from shard.storage import file_sha256, sync_folder, write_whole

CHECKSUMS = "SHA256SUMS"
REJECTED = "rejected.jsonl"
REPAIRED = "repaired.jsonl"
DUPLICATES = "duplicates.jsonl"

SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("key", pa.string()),
        ("crc32", pa.uint32()),
        ("source", pa.string()),
    ]
)
SCHEMA_OF_LISTS = SCHEMA.set(SCHEMA.get_field_index("label"), pa.field("labels", LISTS))


@dataclass(slots=True)
class SplitSummary:
    """What the manifest says of a split.

    Attributes:
        sums: checksums of its files by name.
        digests: of its samples' images, in order, 16 bytes each.
    """

    samples: int = 0
    bytes: int = 0
    repaired: int = 0
    rejected: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, str] = field(default_factory=dict)
    digests: bytearray = field(default_factory=bytearray)

    def about(self) -> dict[str, Any]:
        """Entry of the manifest."""
        return {name: getattr(self, name) for name in ("samples", "bytes", "repaired", "rejected", "shards")}


class IndexWriter:
    """Writes index.parquet, a row group per shard. A context manager; the file appears at its end.

    Args:
        path: of the file.
        staging: local folder for the unfinished one.
        multi_label: whether labels are lists.
    """

    def __init__(self, path: Path, staging: Path, *, multi_label: bool = False) -> None:
        self._path, self._staging = path, staging
        self._schema, self._label = SCHEMA_OF_LISTS if multi_label else SCHEMA, label_column(multi_label)
        self._shards = 0

    def __enter__(self) -> IndexWriter:
        """Open it."""
        with ExitStack() as stack:
            file = stack.enter_context(write_whole(self._path, self._staging))
            self._writer = stack.enter_context(pq.ParquetWriter(file, self._schema, compression="zstd"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        """Finish it, or remove it after an error."""
        self._stack.__exit__(*error)

    def add(self, rows: list[Row]) -> None:
        """Append the rows of the next shard."""
        columns: dict[str, Any] = dict(zip(Row._fields, zip(*rows, strict=True), strict=True))
        columns["shard"] = (self._shards,) * len(rows)
        columns[self._label] = columns.pop("label")
        self._writer.write_table(pa.table({n: columns[n] for n in self._schema.names}, schema=self._schema))
        self._shards += 1


def write_split(
    folder: Path,
    records: Iterator[Record],
    staging: Path,
    rejected: BinaryIO,
    repaired: BinaryIO,
    *,
    multi_label: bool = False,
) -> SplitSummary:
    """Write a split's index and the lines of both lists, a record at a time, and sum up."""
    summary = SplitSummary()
    with IndexWriter(folder / INDEX, staging, multi_label=multi_label) as index:
        for record in records:
            write_lines(rejected, record.rejected)
            write_lines(repaired, record.repaired)
            summary.rejected += len(record.rejected)
            summary.repaired += len({row["source"] for row in record.repaired})
            if not record.rows:  # every image of the shard was rejected
                for suffix in ("tar", "idx"):
                    (folder / f"{record.name}.{suffix}").unlink(missing_ok=True)
                continue
            index.add(record.rows)
            summary.digests += bytes.fromhex("".join(record.digests))
            summary.samples += len(record.rows)
            summary.bytes += record.size_bytes
            summary.shards.append(
                {
                    "name": f"{record.name}.tar",
                    "samples": len(record.rows),
                    "bytes": record.size_bytes,
                    "sha256": record.sha256,
                }
            )
            summary.sums[f"{folder.name}/{record.name}.tar"] = record.sha256
            summary.sums[f"{folder.name}/{record.name}.idx"] = record.idx_sha256
    summary.sums[f"{folder.name}/{INDEX}"] = file_sha256(folder / INDEX)
    return summary


def write_lines(file: BinaryIO, rows: Iterable[dict[str, Any]]) -> None:
    """Append to a JSONL file."""
    for row in rows:
        file.write(json.dumps(row, sort_keys=True).encode() + b"\n")


def write_manifest(
    destination: Path, staging: Path, about: dict[str, Any], splits: dict[str, SplitSummary]
) -> None:
    """Write SHA256SUMS, and as the very last file dataset.json, which makes the dataset visible.

    Args:
        destination: the dataset's folder.
        staging: local folder for unfinished files.
        about: fields of the manifest besides format, fingerprint and splits; has the `classes`.
        splits: what was written, by name.
    """
    sums = {name: digest for one in splits.values() for name, digest in one.sums.items()}
    for name in (REJECTED, REPAIRED, DUPLICATES):
        if (destination / name).exists():
            sums[name] = file_sha256(destination / name)
    manifest = {
        "format": FORMAT,
        "format_version": MULTI_LABEL_VERSION if about.get("multi_label") else FORMAT_VERSION,
        "fingerprint": fingerprint(about["classes"], sums),
        **about,
        "splits": {name: one.about() for name, one in splits.items()},
    }
    text = json.dumps(manifest, indent=1).encode() + b"\n"
    sums[MANIFEST] = hashlib.sha256(text).hexdigest()
    with write_whole(destination / CHECKSUMS, staging) as file:
        file.writelines(f"{digest}  {name}\n".encode() for name, digest in sums.items())
    for name in splits:
        sync_folder(destination / name)
    sync_folder(destination)
    with write_whole(destination / MANIFEST, staging) as file:
        file.write(text)
    sync_folder(destination)


def fingerprint(classes: Iterable[str], sums: dict[str, str]) -> str:
    """Identify samples, labels and order: hex SHA-256 over the class list and the checksums of the tars.

    Of the tars alone: the index follows from them, and its bytes depend on the version of pyarrow.
    """
    tars = {name: digest for name, digest in sums.items() if name.endswith(".tar")}
    return hashlib.sha256(json.dumps([list(classes), tars], sort_keys=True).encode()).hexdigest()
