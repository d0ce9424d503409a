"""Files of a source that consists of few large ones, on a disk or behind any fsspec URL."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import braceexpand
import fsspec

from shard.errors import FeedlineError
from shard.storage import fetch, storage_errors

_SPLIT = re.compile(r"(?:^|[-_./])(train|training|validation|valid|val|test)(?=[-_./])")
_SPLIT_NAMES = {"training": "train", "valid": "val"}


@dataclass(frozen=True, slots=True)
class Input:
    """One file.

    Attributes:
        url: a path, or an fsspec URL.
        name: relative to the source, for naming samples.
        split: as its path says, else "train".
        size_bytes: of the file.
        version: what changes when the file does.
    """

    url: str
    name: str
    split: str
    size_bytes: int
    version: str

    @property
    def is_remote(self) -> bool:
        """Whether it must be fetched before it can be read at random."""
        return "://" in self.url

    @property
    def base(self) -> str:
        """Folder or URL that `name` is relative to."""
        found = self.url.removesuffix(self.name)
        return found if found.endswith("://") else found.rstrip("/") or "/"

    def open(self, staging: Path) -> Path:
        """Give a local file with its content, fetched into `staging` (whole or not at all) if it is remote."""
        if not self.is_remote:
            return Path(self.url)
        return fetch(self.url, self.spooled(staging, ".fetched"))

    def spooled(self, staging: Path, suffix: str) -> Path:
        """Name in `staging` for something made of this file."""
        return staging / f"{hashlib.sha256(f'{self.url} {self.version}'.encode()).hexdigest()[:24]}{suffix}"


def find_inputs(source: str, suffixes: Sequence[str]) -> list[Input]:
    """Files of a folder (recursively), a glob, a brace pattern or a single name that end in one of `suffixes`.

    Raises:
        FeedlineError: there are none, or the storage cannot be asked.
    """
    found: list[Input] = []
    with storage_errors("list", source):
        for pattern in braceexpand.braceexpand(source):
            fs, path = fsspec.core.url_to_fs(pattern)
            root = path.rstrip("/")
            if fsspec.core.has_magic(path):
                paths = sorted(fs.glob(path))
                root = path.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0]
            elif fs.isdir(path):
                paths = sorted(fs.find(path))
            else:
                paths = [path]
                root = root.rpartition("/")[0]
            for one in paths:
                name = one.removeprefix(root).lstrip("/")
                if not one.endswith(tuple(suffixes)) or any(part.startswith(".") for part in name.split("/")):
                    continue
                about = fs.info(one)
                local = "://" not in pattern
                version = str(about.get("mtime")) if local else str(fs.ukey(one))
                url = one if local else fs.unstrip_protocol(one)
                found.append(Input(url, name, split_of(name), int(about["size"]), version))
    if not found:
        raise FeedlineError(f"{source} holds no file that ends in {', '.join(suffixes)}")
    return found


def split_of(name: str) -> str:
    """Split that the path of a file names, the last one if several do; "train" if none does."""
    matches = _SPLIT.findall(name)
    return _SPLIT_NAMES.get(matches[-1], matches[-1]) if matches else "train"
