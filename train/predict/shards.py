"""Images in WebDataset shards: tars on a disk or behind a URL, and datasets that `python -m shard` made of such."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from pathlib import Path

import braceexpand
import fsspec

from loader.cache import default_cache
from shard.dataset import MANIFEST, Dataset
from shard.errors import FeedlineError
from shard.sources.folders import IMAGE_SUFFIXES
from shard.sources.tars import members
from shard.sources.webdataset import SUFFIXES, key_of
from shard.storage import fetch, path_of, storage_errors
from train.predict.images import MAX_BYTES, Bad, Given, too_large, without_name


def is_packed(name: str) -> bool:
    """Whether a name is one of shards or a dataset: a tar, a folder with a manifest, any URL but that of an image."""
    if _is_shard(name):
        return True
    if "://" in name:
        return not path_of(name).lower().endswith(IMAGE_SUFFIXES)
    return os.path.exists(os.path.join(name, MANIFEST))


def _is_shard(name: str) -> bool:
    path = path_of(name).lower()
    if path.endswith(IMAGE_SUFFIXES):
        return False
    # `…/train.tar?signature=…`, and `…/get?file=train.tar`
    return path.endswith(SUFFIXES) or name.lower().endswith(SUFFIXES)


def find_packed(name: str) -> Iterator[Given | Bad]:
    """Images of a dataset, or of shards: `{000..003}` and patterns stand for several of them."""
    if _is_shard(name):
        for shard in _expand(name):
            yield from (shard,) if isinstance(shard, Bad) else _images(shard, _local(shard))
        return
    try:
        dataset = Dataset.open(name)
        shards = [one for split in dataset.split_names for one in _shards(dataset, split)]
    except FeedlineError as error:
        hint = "; an image's URL ends in .jpg or the like" if "://" in name else ""
        yield Bad(name, without_name(error, name) + hint)
        return
    for url, local in shards:
        yield from _images(url, local)


def _expand(name: str) -> Iterator[str | Bad]:
    """Paths or URLs of single shards."""
    try:
        patterns = (name,) if os.path.exists(name) else braceexpand.braceexpand(name)
    except ValueError:
        yield Bad(name, "its braces { } do not match")
        return
    for pattern in patterns:
        try:
            with storage_errors("list", pattern):
                found = _glob(pattern)
        except FeedlineError as error:
            yield Bad(pattern, str(error))
            continue
        yield from found or (Bad(pattern, "no shard matches this pattern"),)


def _glob(pattern: str) -> list[str]:
    if not glob.has_magic(path_of(pattern)) or os.path.exists(pattern):
        return [pattern]
    if "://" not in pattern:
        return sorted(glob.glob(pattern, recursive=True))
    fs, path = fsspec.core.url_to_fs(pattern)
    return [fs.unstrip_protocol(one) for one in sorted(fs.glob(path))]


def _shards(dataset: Dataset, split: str) -> Iterator[tuple[str, AbstractContextManager[Path]]]:
    """Paths or URLs of a split's shards, and how each is to be had on this machine."""
    rows = dataset.split(split)
    for number, about in enumerate(dataset.manifest["splits"][split]["shards"]):
        url = rows.shard_url(number)
        yield url, _cached(url, about["bytes"], about["sha256"]) if "://" in url else _local(url)


@contextmanager
def _cached(url: str, size_bytes: int, sha256: str) -> Iterator[Path]:
    with default_cache().acquire(url, size_bytes, sha256) as held:
        yield held.path


@contextmanager
def _local(url: str) -> Iterator[Path]:
    """The plain tar on this machine, while it is read; what is remote or compressed is copied."""
    if "://" not in url and url.lower().endswith(".tar"):
        yield Path(url)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield fetch(url, Path(folder, "shard.tar"))


def _images(url: str, local: AbstractContextManager[Path]) -> Iterator[Given | Bad]:
    """Images of a shard by their keys; what ends it early is told after those that came before."""
    empty = True
    try:
        with storage_errors("read", url), local as path, path.open("rb") as file:
            for key, group in groupby(members(file, url), lambda member: key_of(member.name)):
                images = [one for one in group if _is_image(one.name)]
                for member in images:
                    empty = False
                    name = f"{url}/{key if len(images) == 1 else member.name}"
                    if member.size > MAX_BYTES:
                        yield Bad(name, too_large(member.size))
                        continue
                    file.seek(member.offset)
                    yield Given(name, file.read(member.size))
    except FeedlineError as error:
        yield Bad(url, without_name(error, url))
        return
    if empty:
        yield Bad(url, "no images in this shard")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.rpartition("/")[2].startswith(".")
