"""Images by name: files, folders, patterns, a list on standard input; what is wrong with one is told, not raised."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shard.image import BadImageError, Checked, Policy, check
from shard.sources.folders import IMAGE_SUFFIXES

MAX_BYTES = 1 << 29  # a file of more is no photo; it would be read into memory whole


@dataclass(frozen=True, slots=True)
class Given:
    """An image whose bytes are at hand.

    Attributes:
        name: what it is called in results.
        data: encoded, of any format that `python -m shard build` takes.
    """

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Bad:
    """Something that cannot be predicted.

    Attributes:
        name: as it was given or found.
        reason: why.
    """

    name: str
    reason: str


def find_images(arguments: Sequence[str], listed: Iterable[str]) -> Iterator[str | Bad]:
    """Names of images, in the order of the arguments.

    A folder stands for the image files below it, by suffix, in order of their names, hidden ones left out. A pattern
    (`*`, `?`, `[…]`, `**`) is for shells that did not expand it, and for more files than fit on a command line.

    Args:
        arguments: files, folders, patterns, and "-" for `listed`.
        listed: lines with a file or folder each.
    """
    for argument in arguments:
        if argument == "-":
            for line in listed:
                if name := line.rstrip("\r\n"):
                    yield from _expand(name, patterns=False)
        else:
            yield from _expand(argument, patterns=True)


def _expand(name: str, *, patterns: bool) -> Iterator[str | Bad]:
    if os.path.isdir(name):
        yield from _below(name)
    elif patterns and glob.has_magic(name) and not os.path.lexists(name):
        found = sorted(glob.glob(name, recursive=True))
        if not found:
            yield Bad(name, "no file matches this pattern")
        for one in found:
            if not os.path.isdir(one):  # `**` gives folders beside what is in them
                yield one
    else:
        yield name  # reading it says what is wrong with it


def _below(folder: str) -> Iterator[str | Bad]:
    empty = True
    problems: list[OSError] = []
    for root, folders, files in os.walk(folder, onerror=problems.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                empty = False
                yield os.path.join(root, name)
    for problem in problems:
        yield Bad(str(problem.filename), problem.strerror or str(problem))
    if empty and not problems:
        yield Bad(folder, "no image files in this folder")


def load_image(image: str | Given, policy: Policy) -> Checked | Bad:
    """Read and check an image as `python -m shard build` does: what becomes of it there is predicted.

    A plain JPEG keeps its bytes; any other image becomes a JPEG of quality 95, unless the policy says otherwise.

    Args:
        image: name of a file, or an image that has been read.
        policy: of the run; see `Trained.images`.
    """
    if isinstance(image, Given):
        name, data = image.name, image.data
    else:
        name, found = image, _read(image)
        if isinstance(found, Bad):
            return found
        data = found
    if len(data) > MAX_BYTES:
        return Bad(name, _too_large(len(data)))
    try:
        return check(data, policy)
    except BadImageError as error:
        return Bad(name, str(error))


def is_sideways(image: Checked, policy: Policy) -> bool:
    """Whether its camera noted that it is to be turned, and the policy did not follow."""
    return policy.exif == "strip" and "exif" in image.changes


def _read(name: str) -> bytes | Bad:
    try:
        # Not to wait for somebody to write into a named pipe.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        with os.fdopen(os.open(name, flags), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return Bad(name, "not a regular file")
            if about.st_size > MAX_BYTES:
                return Bad(name, _too_large(about.st_size))
            return file.read(about.st_size)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        return Bad(name, getattr(error, "strerror", None) or str(error))


def _too_large(size_bytes: int) -> str:
    return f"{size_bytes:,} bytes, more than {MAX_BYTES:,}"
