"""Write what stands beside the shards: index.parquet, the lists, checksums and the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shard.dataset import FORMAT, FORMAT_VERSION, INDEX, MANIFEST
from shard.pack import Record, write_whole
from shard.plan import Settings

CHECKSUMS = "SHA256SUMS"
REJECTED = "rejected.jsonl"
REPAIRED = "repaired.jsonl"

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
    ]
)


def write_index(path: Path, records: Sequence[Record], staging: Path) -> None:
    """Write index.parquet: a row group per shard, in order."""
    names = SCHEMA.names[1:]
    with write_whole(path, staging) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for number, record in enumerate(records):
            columns = dict(zip(names, zip(*record.rows, strict=True), strict=True))
            columns["shard"] = (number,) * len(record.rows)
            writer.write_table(pa.table({n: columns[n] for n in SCHEMA.names}, schema=SCHEMA))


def write_lines(path: Path, rows: Iterable[dict[str, str]], staging: Path) -> None:
    """Write a JSONL file."""
    with write_whole(path, staging) as file:
        for row in rows:
            file.write(json.dumps(row, sort_keys=True).encode() + b"\n")


def write_manifest(
    destination: Path,
    staging: Path,
    classes: tuple[str, ...],
    settings: Settings,
    source: str,
    records: Sequence[Record],
) -> None:
    """Write SHA256SUMS, and as the very last file dataset.json, which makes the dataset visible."""
    sums: dict[str, str] = {}
    splits: dict[str, Any] = {}
    for split in sorted({record.split for record in records}):
        mine = [record for record in records if record.split == split]
        for record in mine:
            sums[f"{split}/{record.name}.tar"] = record.sha256
            sums[f"{split}/{record.name}.idx"] = record.idx_sha256
        sums[f"{split}/{INDEX}"] = file_sha256(destination / split / INDEX)
        splits[split] = {
            "samples": sum(len(record.rows) for record in mine),
            "bytes": sum(record.size_bytes for record in mine),
            "repaired": sum(len(record.repaired) for record in mine),
            "rejected": sum(len(record.rejected) for record in mine),
            "shards": [
                {"name": f"{r.name}.tar", "samples": len(r.rows), "bytes": r.size_bytes, "sha256": r.sha256}
                for r in mine
            ],
        }
    # Of the tars alone: the index follows from them, and its bytes depend on the version of pyarrow.
    tars = {name: digest for name, digest in sums.items() if name.endswith(".tar")}
    identity = json.dumps([classes, tars], sort_keys=True).encode()
    for name in (REJECTED, REPAIRED):
        sums[name] = file_sha256(destination / name)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": hashlib.sha256(identity).hexdigest(),
        "source": source,
        "settings": asdict(settings),
        "classes": classes,
        "splits": splits,
    }
    text = json.dumps(manifest, indent=1).encode() + b"\n"
    sums[MANIFEST] = hashlib.sha256(text).hexdigest()
    with write_whole(destination / CHECKSUMS, staging) as file:
        file.writelines(f"{digest}  {name}\n".encode() for name, digest in sums.items())
    with write_whole(destination / MANIFEST, staging) as file:
        file.write(text)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
