"""Images from outside of a dataset, read and checked; what is wrong with one is told, not raised."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

import fsspec

from shard.errors import FeedlineError
from shard.image import BadImageError, Checked, Policy, check
from shard.storage import storage_errors

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


def load_image(image: str | Given, policy: Policy) -> Checked | Bad:
    """Read and check an image as `python -m shard build` does: what becomes of it there is predicted.

    A plain JPEG keeps its bytes; any other image becomes a JPEG of quality 95, unless the policy says otherwise.

    Args:
        image: path or URL of a file, or an image that has been read.
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
        return Bad(name, too_large(len(data)))
    try:
        return check(data, policy)
    except BadImageError as error:
        return Bad(name, str(error))


def is_sideways(image: Checked, policy: Policy) -> bool:
    """Whether its camera noted that it is to be turned, and the policy did not follow."""
    return policy.exif == "strip" and "exif" in image.changes


def _read(name: str) -> bytes | Bad:
    if "://" in name:
        return _fetch(name)
    try:
        # Not to wait for somebody to write into a named pipe.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        with os.fdopen(os.open(name, flags), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return Bad(name, "not a regular file")
            if about.st_size > MAX_BYTES:
                return Bad(name, too_large(about.st_size))
            return file.read(about.st_size)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        return Bad(name, getattr(error, "strerror", None) or str(error))


def _fetch(url: str) -> bytes | Bad:
    try:
        with storage_errors("read", url), fsspec.open(url, "rb") as file:
            data: bytes = file.read(MAX_BYTES + 1)
            return data
    except FeedlineError as error:
        return Bad(url, without_name(error, url))


def without_name(error: FeedlineError, name: str) -> str:
    """What went wrong in reading `name`, for a line that begins with it."""
    return str(error).removeprefix(f"cannot read {name}: ")


def too_large(size_bytes: int) -> str:
    """Why a file is not read."""
    return f"{size_bytes:,} bytes, more than {MAX_BYTES:,}"
