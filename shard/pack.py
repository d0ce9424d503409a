"""Write one shard: tar, DALI index and row table, each visible only when whole."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from shard.errors import FeedlineError
from shard.image import BadImageError, check
from shard.plan import ShardJob

BLOCK = tarfile.BLOCKSIZE
IDX_VERSION = "v1.2"


@dataclass(slots=True)
class Record:
    """What is known of a finished shard; kept beside the build until it is complete.

    Attributes:
        rows: one [offset, size, label, width, height, key, crc32] per sample, as in index.parquet.
        rejected: dicts for rejected.jsonl.
        repaired: dicts for repaired.jsonl.
    """

    split: str
    name: str
    size_bytes: int = 0
    sha256: str = ""
    idx_sha256: str = ""
    rows: list[tuple[int, int, int, int, int, str, int]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    repaired: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> str:
        """Serialise."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


def pack(job: ShardJob, root: Path, classes: tuple[str, ...], destination: Path, staging: Path) -> Record:
    """Write `destination`/<split>/<shard>.tar and .idx, then its record into `staging`.

    Runs in a worker process. The record is written last: where it exists, the shard is whole.

    Raises:
        FeedlineError: a source file could not be read, or the shard not written.
    """
    folder = destination / job.split
    record = Record(job.split, job.name)
    index: list[str] = []
    with write_whole(folder / f"{job.name}.tar", staging) as file:
        tar = _TarWriter(file)
        for i, item in enumerate(job.items):
            source = {"source": item.path, "split": job.split}
            try:
                image = check(_read(root / item.path))
            except BadImageError as error:
                record.rejected.append({**source, "reason": str(error)})
                continue
            if image.repaired:
                record.repaired.append({**source, "reason": image.repaired})
            key = f"{job.first_key + i:010d}"
            about = {"class": classes[item.label], "source": item.path}
            members = {
                "cls": str(item.label).encode(),
                "jpg": image.data,
                "json": json.dumps(about, sort_keys=True).encode(),
            }
            offsets = {suffix: tar.add(f"{key}.{suffix}", data) for suffix, data in members.items()}
            index.append(" ".join(f"{s} {offsets[s]} {len(d)} {key}.{s}" for s, d in members.items()))
            size, crc = len(image.data), zlib.crc32(image.data)
            record.rows.append((offsets["jpg"], size, item.label, image.width, image.height, key, crc))
        tar.finish()
        record.size_bytes, record.sha256 = tar.position, tar.digest.hexdigest()
    text = "\n".join([f"{IDX_VERSION} {len(index)}", *index]) + "\n"
    record.idx_sha256 = hashlib.sha256(text.encode()).hexdigest()
    with write_whole(folder / f"{job.name}.idx", staging) as file:
        file.write(text.encode())
    with write_whole(record_path(staging, job), staging) as file:
        file.write(record.to_json().encode())
    return record


def record_path(staging: Path, job: ShardJob) -> Path:
    """Where the record of a finished shard lies."""
    return staging / f"{job.split}-{job.name}.json"


@contextmanager
def write_whole(path: Path, staging: Path) -> Iterator[BinaryIO]:
    """Write a file aside and give it its name only when it is complete and on disk.

    Raises:
        FeedlineError: it could not be written (disk full, no permission); nothing is left behind.
    """
    # The process number, because a worker that outlives a killed build must not share a file with the next.
    aside = staging / f"{path.parent.name}-{path.name}.{os.getpid()}.part"
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise FeedlineError(
            f"cannot write {path}: {error.strerror}; finished shards are kept, make room and run the same "
            "command again"
        ) from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        # Not the image's fault: the source vanished or its disk failed, and going on would hide that.
        raise FeedlineError(
            f"cannot read {path}: {error.strerror}; restore it and run the same command again"
        ) from error


class _TarWriter:
    """Plain ustar, nothing in it that differs between two runs.

    `webdataset.TarWriter` can write the same, but importing webdataset imports torch, in every worker.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0
        self.digest = hashlib.sha256()

    def add(self, name: str, data: bytes) -> int:
        """Append one member and return the offset of its data."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o444
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.position
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return offset

    def finish(self) -> None:
        """End the archive: two zero blocks, filled up to a record as tar does."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.position % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.position += len(data)
