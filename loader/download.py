"""Brings one object of a store into a file: resumes what broke off, retries, checks the SHA-256."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec.core
from fsspec.asyn import AsyncFileSystem

from shard.errors import FeedlineError
from shard.storage import storage_errors

_CHUNK = 4 << 20
_GATHER_S = 0.5  # how long small pieces are gathered: few switches between threads, yet steady progress
_ATTEMPTS = 3
_FIRST_DELAY_S, _LAST_DELAY_S = 0.1, 5.0
_CONNECT_S, _READ_S = 10.0, 30.0
_HOPELESS = (FileNotFoundError, PermissionError, ImportError, ValueError)
_NOT_FOUND, _NOT_ALLOWED, _BEYOND_THE_END = (404, 410), (401, 403, 407), 416

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A shard in a store.

    Attributes:
        url: where it is.
        size_bytes: what the manifest says it has.
        sha256: hex digest, out of the manifest.
    """

    url: str
    size_bytes: int
    sha256: str


def closed(url: str) -> FeedlineError:
    """The error of one who is told to stop."""
    return FeedlineError(f"closed before {url} was there")


def download(
    wanted: Wanted,
    part: Path,
    *,
    retry_s: float,
    stop: threading.Event,
    received: Callable[[int], None],
) -> None:
    """Complete the file `part`, which may hold the beginning already.

    Args:
        wanted: what to fetch.
        part: where to; stays, to go on from, when the store fails; is removed when its content is damaged.
        retry_s: gives up when the store has sent nothing for so long.
        stop: set: gives up soon.
        received: is told the bytes of every piece.

    Raises:
        FeedlineError: the store does not give the object, or a damaged one, or `stop` was set.
        OSError: the disk does not take it.
    """
    for _ in range(_ATTEMPTS):
        with part.open("a+b") as file:
            found = _complete(file, wanted, _chunks(wanted, part.stat().st_size, retry_s, stop), received)
            if found == wanted.sha256:
                return
            file.truncate(0)  # not unlink: its name keeps the room reserved
    part.unlink()
    raise FeedlineError(
        f"{wanted.url} has {found} but dataset.json says SHA-256 {wanted.sha256} and {wanted.size_bytes} bytes "
        f"(fetched {_ATTEMPTS} times); the object in the store is damaged: upload it again"
    )


def _complete(
    file: BinaryIO, wanted: Wanted, chunks: Iterator[tuple[int, bytes]], received: Callable[[int], None]
) -> str:
    """Append what the store sends.

    Returns:
        the file's SHA-256, or what is wrong with its size.
    """
    digest, position = hashlib.sha256(), 0
    file.seek(0)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        position += len(chunk)
    for offset, chunk in chunks:
        received(len(chunk))
        if offset != position:
            file.truncate(0)
            digest, position = hashlib.sha256(), 0
        position += len(chunk)
        if position > wanted.size_bytes:
            return f"more than {wanted.size_bytes} bytes"
        file.write(chunk)
        file.flush()
        digest.update(chunk)
    return digest.hexdigest() if position == wanted.size_bytes else f"{position} bytes"


def _chunks(wanted: Wanted, start: int, retry_s: float, stop: threading.Event) -> Iterator[tuple[int, bytes]]:
    """Offsets and bytes of an object from `start` on, over any number of broken transfers.

    Each goes on where the last ended, or at offset 0: a store without ranges starts anew.
    """
    position = best = start
    delay_s, deadline = _FIRST_DELAY_S, time.monotonic() + retry_s
    while position != wanted.size_bytes:
        try:
            with storage_errors("fetch", wanted.url):
                for offset, chunk in _read(wanted, position, stop):
                    yield offset, chunk
                    position = offset + len(chunk)
                    # Beyond what was reached before, or a transfer that always breaks at one place goes on forever.
                    if position > best:
                        best = position
                        delay_s, deadline = _FIRST_DELAY_S, time.monotonic() + retry_s
            return
        except FeedlineError as error:
            if error.__cause__ is None:
                raise
            if isinstance(error.__cause__, _HOPELESS):
                raise FeedlineError(f"{error}; check the URL and the credentials") from error
            if time.monotonic() >= deadline:
                raise FeedlineError(
                    f"{error}; the store has sent nothing more for {retry_s:g} s: check it and the network, "
                    "then start again (what was fetched is kept)"
                ) from error
        # Jitter, lest all the ranks of all the nodes knock at the same moment.
        if stop.wait(delay_s * random.uniform(0.5, 1.5)):
            raise closed(wanted.url)
        delay_s = min(2 * delay_s, _LAST_DELAY_S)


def _read(wanted: Wanted, start: int, stop: threading.Event) -> Iterator[tuple[int, bytes]]:
    """One transfer, as `_chunks`."""
    fs, inside = fsspec.core.url_to_fs(wanted.url)
    if wanted.url.startswith(("http://", "https://")):
        yield from _read_http(fs, inside, start, stop)
        return
    for offset in range(start, wanted.size_bytes, _CHUNK):
        end = min(offset + _CHUNK, wanted.size_bytes)
        if isinstance(fs, AsyncFileSystem):
            chunk = _result(fs, fs._cat_file(inside, start=offset, end=end), inside, stop)
        elif stop.is_set():
            raise closed(wanted.url)
        else:
            chunk = fs.cat_file(inside, start=offset, end=end)
        yield offset, chunk
        if len(chunk) < end - offset:
            return


def _read_http(
    fs: AsyncFileSystem, url: str, start: int, stop: threading.Event
) -> Iterator[tuple[int, bytes]]:
    """One request for the whole rest: a request per chunk would pay the latency each time."""
    response = _result(fs, _get(fs, url, start), url, stop)
    try:
        if response.status == _BEYOND_THE_END:
            return
        offset = start if response.status == 206 else 0
        while chunk := _result(fs, _gather(response.content), url, stop):
            yield offset, chunk
            offset += len(chunk)
    finally:
        fs.loop.call_soon_threadsafe(response.close)


async def _get(fs: Any, url: str, start: int) -> Any:
    from aiohttp import ClientTimeout  # only here: whoever reads S3 or a disk may do without it

    session = await fs.set_session()
    # A compressed transfer would give ranges another meaning.
    headers = {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_READ_S)
    options = {**fs.kwargs, "headers": headers, "timeout": timeout, "read_bufsize": _CHUNK}
    response = await session.get(fs.encode_url(url), **options)
    if response.status >= 400 and response.status != _BEYOND_THE_END:
        response.close()
        text = f"HTTP {response.status} {response.reason}"
        if response.status in _NOT_FOUND:
            raise FileNotFoundError(text)
        raise PermissionError(text) if response.status in _NOT_ALLOWED else OSError(text)
    return response


async def _gather(content: Any) -> bytes:
    pieces: list[bytes] = []
    size, until = 0, time.monotonic() + _GATHER_S
    try:
        while size < _CHUNK and time.monotonic() < until and (piece := await content.read(_CHUNK - size)):
            pieces.append(piece)
            size += len(piece)
    except Exception:
        if not pieces:  # else what came is good, and the next call meets the error again
            raise
    return b"".join(pieces)


def _result(fs: Any, work: Coroutine[Any, Any, T], url: str, stop: threading.Event) -> T:
    """Run in the file system's event loop.

    Not fsspec's own `sync`, because a stalled transfer must end when `stop` is set.
    """
    future = asyncio.run_coroutine_threadsafe(work, fs.loop)
    try:
        while not wait([future], timeout=0.1).done:
            if stop.is_set():
                raise closed(url)
        return future.result()
    finally:
        future.cancel()  # nothing, if it is done
