"""A build must not write into its source, nor remove it."""

from __future__ import annotations

import posixpath
from pathlib import Path, PurePath, PurePosixPath

from fsspec.registry import known_implementations

from shard.dataset import INDEX
from shard.errors import FeedlineError
from shard.items import FileReader
from shard.sources import Source
from shard.storage import path_of


def refuse_overlap(source: Source, target: Path) -> None:
    """Make sure that source and target lie apart, links resolved and URLs of one storage compared as paths.

    Raises:
        FeedlineError: the target lies in the source, or a file of the source in the target.
    """
    at = _place(str(target))
    if _lies_in(at, _place(source.root)):
        raise FeedlineError(
            f"destination {target} lies in the source {source.root}; choose a folder outside of it"
        )
    names = [source.root, *(one.url for one in source.inputs)]
    if source.listed is not None and isinstance(source.listed.reader, FileReader):
        names += source.listed.reader.containers
    folders = [at, *_linked(at)]
    for name in names:
        place = _place(name)
        if any(_lies_in(place, folder) for folder in folders):
            raise FeedlineError(f"source {name} lies in the destination {target}; choose another destination")


def _place(name: str) -> tuple[str, PurePath]:
    """Storage that a path or URL is of, and the path there."""
    if "://" not in name:
        return "file", Path(name).resolve()
    scheme, _, path = path_of(name.rpartition("::")[2]).partition("://")
    if scheme in ("file", "local"):
        return "file", Path(path).resolve()
    # Some have several schemes: s3 and s3a, gs and gcs.
    storage = known_implementations.get(scheme, {}).get("class", scheme)
    return storage, PurePosixPath(posixpath.normpath(path))


def _lies_in(inner: tuple[str, PurePath], outer: tuple[str, PurePath]) -> bool:
    return inner[0] == outer[0] and inner[1].is_relative_to(outer[1])


def _linked(target: tuple[str, PurePath]) -> list[tuple[str, PurePath]]:
    """Folders elsewhere, with shards, that links in the target lead to: splits that were moved to another disk."""
    folder = Path(target[1])
    if target[0] != "file" or not folder.is_dir():
        return []
    links = [path for path in folder.iterdir() if path.is_symlink() and path.is_dir()]
    return [_place(str(path)) for path in links if (path / INDEX).exists() or any(path.glob("shard-*"))]
