"""Clients of `tests/train/serve_load.py`: some send photos, the others harm."""

from __future__ import annotations

import asyncio
import random
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import aiohttp

LARGE = 50_000_000  # bytes
CLOSED = 0  # in place of a status: no answer
_PATIENCE = aiohttp.ClientTimeout(total=600)


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that says it has `side` × `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


async def _chunks(size: int) -> AsyncIterator[bytes]:
    block = bytes(65_536)
    for start in range(0, size, len(block)):
        yield block[: size - start]


async def _parts(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 16_384):
        yield data[start : start + 16_384]


class Attack:
    """The requests of a round: (what it is, status that it must get, how it is sent)."""

    def __init__(self, session: aiohttp.ClientSession, url: str, photos: list[bytes]) -> None:
        self._session, self._url = session, url
        self.photos = photos
        self.seconds: list[float] = []
        self.again = 0
        self.answers: dict[int, set[str]] = {}

    def requests(self) -> list[tuple[str, int, Callable[[], Awaitable[int]]]]:
        """All 500, in random order."""
        jpeg = self.photos[0]
        kinds: list[tuple[int, str, int, Callable[[], Awaitable[int]]]] = [
            (25, "50 MB", 413, lambda: self._post(_chunks(LARGE), {"Content-Length": str(LARGE)})),
            (25, "50 MB in chunks", 413, lambda: self._post(_chunks(LARGE))),
            (50, "truncated", 422, lambda: self._post(jpeg[: len(jpeg) // 2])),
            (25, "bomb of 2,500 million pixels", 413, lambda: self._post(bomb(50_000))),
            (25, "bomb of 100 million pixels", 413, lambda: self._post(bomb(10_000))),
            (20, "text", 415, lambda: self._post(b"I am no image")),
            (10, "JSON", 415, lambda: self._post(b"{}", {"Content-Type": "application/json"})),
            (10, "empty", 422, lambda: self._post(b"")),
            (10, "wrong field", 400, lambda: self._form(jpeg, "image")),
            (25, "slow body", 408, lambda: self._slow(b"Content-Length: 99999\r\n\r\n", b"x")),
            (25, "slow head", CLOSED, lambda: self._slow(b"", b"a: b\r\n")),
            (25, "hangs up", CLOSED, lambda: self._hang_up(jpeg)),
        ]
        every = [(what, status, send) for count, what, status, send in kinds for _ in range(count)]
        photos = 500 - len(every)
        every += [("photo", 200, partial(self.photo, number)) for number in range(photos)]
        random.Random(0).shuffle(every)
        return every

    async def until_taken(self, send: Callable[[], Awaitable[int]]) -> int:
        """Send, and again a second after each 503, as Retry-After asks for."""
        while (status := await send()) == 503:
            self.again += 1
            await asyncio.sleep(1)
        return status

    async def photo(self, number: int) -> int:
        """Send a photo, in one of three ways, and note how long it took."""
        which = number % len(self.photos)
        data, begin = self.photos[which], time.perf_counter()
        if number % 4 == 1:
            sent: Any = {"data": _as_form(data, "file")}
        else:
            sent = {"data": _parts(data) if number % 4 == 2 else data}
        async with self._session.post(f"{self._url}/predict", **sent) as reply:
            text = await reply.text()
            assert reply.status != 503 or reply.headers["Retry-After"] == "1"
        self.seconds.append(time.perf_counter() - begin)
        if reply.status == 200:
            likeliest = max((await reply.json())["predictions"], key=lambda one: one["probability"])
            self.answers.setdefault(which, set()).add(f"{likeliest['class']} {likeliest['probability']:.2f}")
        elif reply.status != 503:
            print(f"  photo: {reply.status} {text}")
        return reply.status

    async def _post(self, data: Any, headers: dict[str, str] | None = None) -> int:
        async with self._session.post(f"{self._url}/predict", data=data, headers=headers) as reply:
            assert "detail" in await reply.json()
            return reply.status

    async def _form(self, data: bytes, name: str) -> int:
        async with self._session.post(f"{self._url}/predict", data=_as_form(data, name)) as reply:
            return reply.status

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\n")
        return reader, writer

    async def _slow(self, head: bytes, drop: bytes) -> int:
        reader, writer = await self._open()
        writer.write(head)
        first = asyncio.ensure_future(reader.readline())
        while not first.done():
            writer.write(drop)
            await asyncio.wait({first}, timeout=0.5)
        writer.close()
        try:
            return int(first.result().split()[1])
        except (OSError, IndexError):
            return CLOSED

    async def _hang_up(self, data: bytes) -> int:
        _, writer = await self._open()
        whole = random.random() < 0.5
        writer.write(b"Content-Length: %d\r\n\r\n" % len(data) + (data if whole else data[:1000]))
        await writer.drain()
        writer.close()
        return CLOSED


def _as_form(data: bytes, name: str) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field(name, data, filename="a.jpg", content_type="image/jpeg")
    return form


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=_PATIENCE)
