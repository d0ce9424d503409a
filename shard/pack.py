"""Write one shard: tar, DALI index and record, each visible only when whole."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import xxhash

from shard.errors import FeedlineError
from shard.image import BadImageError, Policy, check
from shard.items import Item, Reader
from shard.labels import Label, class_names, cls_text
from shard.plan import ShardJob
from shard.storage import sync_folder, write_whole
from shard.tar import TarWriter

IDX_VERSION = "v1.2"


class Row(NamedTuple):
    """A sample as index.parquet has it."""

    offset: int
    size: int
    label: Label
    width: int
    height: int
    key: str
    crc32: int
    source: str


@dataclass(slots=True)
class Record:
    """What is known of a finished shard; kept beside the build until it is complete.

    Attributes:
        split: its split.
        name: file name without suffix.
        size_bytes: of the tar.
        sha256: of the tar.
        idx_sha256: of the DALI index.
        rows: one per sample.
        digests: XXH3-128 of each sample's stored image, hexadecimal.
        rejected: rows for rejected.jsonl.
        repaired: rows for repaired.jsonl.
    """

    split: str
    name: str
    size_bytes: int = 0
    sha256: str = ""
    idx_sha256: str = ""
    rows: list[Row] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    repaired: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> str:
        """Serialise."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Inverse of `to_json`."""
        record = cls(**json.loads(text))
        record.rows = [Row(*row) for row in record.rows]
        return record


class Outcome(NamedTuple):
    """What the coordinator needs to hear of a packed shard."""

    images: int
    rejected: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Packer:
    """Everything that shard jobs have in common; sent to worker processes.

    Attributes:
        reader: of the source.
        classes: class names by label.
        policy: for images.
        destination: of the dataset.
        records: where records of finished shards go.
        staging: local folder for files under way.
    """

    reader: Reader
    classes: tuple[str, ...]
    policy: Policy
    destination: Path
    records: Path
    staging: Path

    def __call__(self, job: ShardJob) -> Outcome:
        """Write <split>/<shard>.tar and .idx, then the record: where it exists, the shard is whole.

        Raises:
            FeedlineError: a source file could not be read, or the shard not written.
        """
        folder = self.destination / job.split
        record, index = Record(job.split, job.name), [""]
        self.staging.mkdir(parents=True, exist_ok=True)
        with write_whole(folder / f"{job.name}.tar", self.staging) as file:
            tar = TarWriter(file)
            for i, item in enumerate(job.items):
                self._add(item, f"{job.first_key + i:010d}", tar, record, index)
            tar.finish()
            record.size_bytes, record.sha256 = tar.position, tar.digest.hexdigest()
        index[0] = f"{IDX_VERSION} {len(record.rows)}"
        text = ("\n".join(index) + "\n").encode()
        record.idx_sha256 = hashlib.sha256(text).hexdigest()
        with write_whole(folder / f"{job.name}.idx", self.staging) as file:
            file.write(text)
        sync_folder(folder)  # before the record says that the shard is there
        with write_whole(self.records / record_name(job.split, job.name), self.staging) as file:
            file.write(record.to_json().encode())
        return Outcome(len(job.items), record.rejected)

    def _add(self, item: Item, key: str, tar: TarWriter, record: Record, index: list[str]) -> None:
        # File names may hold bytes that are no UTF-8, JSON and Parquet may not.
        name = item.source.encode(errors="surrogateescape").decode(errors="backslashreplace")
        source = {"source": name, "split": record.split}
        try:
            image = check(self.reader.read(item), self.policy)
        except BadImageError as error:
            if self.policy.on_bad == "fail":
                raise FeedlineError(
                    f"{name}: {error}; mend or remove it, or choose --on-bad repair or skip"
                ) from error
            record.rejected.append({**source, "reason": str(error)})
            return
        for kind, text in image.changes.items():
            record.repaired.append({**source, "kind": kind, "reason": text})
        about = {**class_names(item.label, self.classes), "source": name}
        members = {
            "cls": cls_text(item.label).encode(),
            "jpg": image.data,
            "json": json.dumps(about, sort_keys=True).encode(),
        }
        offsets = tar.add(key, members)
        index.append(" ".join(f"{s} {offsets[s]} {len(d)} {key}.{s}" for s, d in members.items()))
        record.digests.append(xxhash.xxh3_128_hexdigest(image.data))
        size, crc = len(image.data), zlib.crc32(image.data)
        record.rows.append(Row(offsets["jpg"], size, item.label, image.width, image.height, key, crc, name))


def record_name(split: str, shard: str) -> str:
    """File name of a finished shard's record."""
    return f"{split}-{shard}.json"
