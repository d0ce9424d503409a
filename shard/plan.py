"""Which sample goes into which shard: decided before anything is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial

from shard.source import Item, Source

# A sample's other members (header and data of .cls, headers of .jpg and .json, and its JSON) take about this.
_OVERHEAD_BYTES = 3072
_LOSSLESS = ("utf-8", "surrogateescape")  # file names may hold bytes that are no UTF-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the content of a dataset, besides its source.

    Attributes:
        seed: of the order.
        shard_bytes: a shard is closed before it grows beyond this (a single larger image stands alone).
    """

    seed: int = 0
    shard_bytes: int = 256_000_000


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One shard to write.

    Attributes:
        split: its split.
        number: its number in the split.
        first_key: key of its first item; the following count up.
        items: what goes in, in order.
    """

    split: str
    number: int
    first_key: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """File name without suffix."""
        return f"shard-{self.number:06d}"


def plan(source: Source, settings: Settings) -> list[ShardJob]:
    """Shuffle every split and cut it into shards.

    The order is that of BLAKE2b(seed, split, path): the same everywhere, and adding a file moves no other
    files relative to each other. The cuts follow the sizes of the source files, so neither the number of
    workers nor a rejected image moves a sample to another shard.
    """
    jobs: list[ShardJob] = []
    for split, items in sorted(source.items.items()):
        ordered = sorted(items, key=partial(_rank, f"{settings.seed}\0{split}\0"))
        first, room, number = 0, settings.shard_bytes, 0
        for i, item in enumerate(ordered):
            needed = item.size_bytes + _OVERHEAD_BYTES
            if needed > room and i > first:
                jobs.append(ShardJob(split, number, first, tuple(ordered[first:i])))
                first, room, number = i, settings.shard_bytes, number + 1
            room -= needed
        jobs.append(ShardJob(split, number, first, tuple(ordered[first:])))
    return jobs


def fingerprint(source: Source, settings: Settings, *, times: bool) -> str:
    """Identify a plan: hex digest over settings, classes and every file's path and size.

    With `times` also over modification times: an unfinished build must not go on with changed files,
    while a finished one stays the same dataset when its source was copied elsewhere.
    """
    digest = hashlib.blake2b(json.dumps([asdict(settings), source.classes]).encode(), digest_size=16)
    for split, items in sorted(source.items.items()):
        for item in sorted(items, key=lambda item: item.path):
            time = item.mtime_ns if times else ""
            digest.update(
                f"{split}\0{item.path}\0{item.label}\0{item.size_bytes}\0{time}\n".encode(*_LOSSLESS)
            )
        digest.update("\0".join(sorted(source.ignored[split])).encode(*_LOSSLESS))
    return digest.hexdigest()


def _rank(prefix: str, item: Item) -> bytes:
    return hashlib.blake2b((prefix + item.path).encode(*_LOSSLESS), digest_size=16).digest()
