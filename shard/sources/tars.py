"""Members of a tar by absolute offset, without unpacking it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from shard.errors import FeedlineError


class Member(NamedTuple):
    """A file in a tar: its name, and where its bytes begin in the outermost file, and how many they are."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO, path: str, start: int = 0) -> Iterator[Member]:
    """Regular files of the tar that begins `start` bytes into `file`, in order.

    Raises:
        FeedlineError: not a tar, or cut off.
    """
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            end = start
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.isfile():
                    yield Member(member.name, member.offset_data, member.size)
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"it is cut off after byte {end}")
    except tarfile.TarError as error:
        raise FeedlineError(f"{path} is no complete tar: {error}; download or copy it again") from error
