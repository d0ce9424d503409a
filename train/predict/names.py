"""Images by name: files, folders, patterns, shards, a list on standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence

from shard.sources.folders import IMAGE_SUFFIXES
from shard.sources.webdataset import SUFFIXES
from train.predict.images import Bad, Given
from train.predict.shards import find_packed, is_packed

_TOLD = (".heic", ".heif")  # of photos that are not read, and would be missed


def find_images(arguments: Sequence[str], listed: Iterable[str]) -> Iterator[str | Given | Bad]:
    """Images in the order of the arguments: names of files, or what is in shards.

    A folder stands for the image files below it, by suffix, in order of their names, links followed, as `shard build`
    does, and hidden ones left out. A pattern
    (`*`, `?`, `[…]`, `**`) is for shells that did not expand it, and for more files than fit on a command line.

    Args:
        arguments: files, folders, patterns, shards, datasets (see `train.predict.shards`), and "-" for `listed`.
        listed: lines with one of these each, but no patterns of files.
    """
    for argument in arguments:
        if argument == "-":
            for line in listed:
                if name := line.rstrip("\r\n"):
                    yield from _expand(name, patterns=False)
        else:
            yield from _expand(argument, patterns=True)


def _expand(name: str, *, patterns: bool) -> Iterator[str | Given | Bad]:
    if is_packed(name):
        yield from find_packed(name)
    elif os.path.isdir(name):
        yield from _below(name)
    elif patterns and "://" not in name and glob.has_magic(name) and not os.path.lexists(name):
        found = sorted(glob.glob(name, recursive=True))
        if not found:
            yield Bad(name, "no file matches this pattern")
        for one in found:
            if not os.path.isdir(one):  # `**` gives folders beside what is in them
                yield from find_packed(one) if is_packed(one) else (one,)
    else:
        yield name  # reading it says what is wrong with it


def _below(folder: str) -> Iterator[str | Given | Bad]:
    empty, shards = True, False
    problems: list[OSError] = []
    above = {folder: frozenset([os.path.realpath(folder)])}  # real paths from the top, of folders to come
    for root, folders, files in os.walk(folder, onerror=problems.append, followlinks=True):
        chain, visible = above.pop(root), sorted(name for name in folders if not name.startswith("."))
        real = {name: os.path.realpath(os.path.join(root, name)) for name in visible}
        folders[:] = [name for name in visible if real[name] not in chain]  # the others lead upwards
        above |= {os.path.join(root, name): chain | {real[name]} for name in folders}
        for name in sorted(files):
            if name.lower().endswith((*IMAGE_SUFFIXES, *_TOLD)) and not name.startswith("."):
                empty = False
                yield os.path.join(root, name)
            shards |= name.lower().endswith(SUFFIXES)
    for problem in problems:
        yield Bad(str(problem.filename), problem.strerror or str(problem))
    if empty and not problems:
        hint = f"; for its shards give {os.path.join(folder, '**', '*.tar')!r}" if shards else ""
        yield Bad(folder, f"no image files in this folder{hint}")
