"""Results that appear under their name when they are complete, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shard.errors import FeedlineError
from shard.storage import sync_folder


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file or fill a folder at; it becomes `path` if the block ends well.

    A file that was there is replaced, and so is a folder; of a symbolic link what it leads to.

    Raises:
        FeedlineError: the disk does not take it, or there is something else, such as a pipe or a device.
    """
    path = Path(os.path.realpath(path)) if os.path.islink(path) else path
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise FeedlineError(f"cannot write {path}: it is no file that could be replaced; give another name")
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        for file in (aside, *aside.rglob("*")) if aside.is_dir() else (aside,):
            _sync(file)
        if aside.is_dir() and path.is_dir():
            shutil.rmtree(path)  # no system call puts one folder in another's place
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise FeedlineError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if os.path.isdir(aside):
            shutil.rmtree(aside)
        elif os.path.lexists(aside):  # not missing_ok, which raises where there can be no such name
            aside.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
