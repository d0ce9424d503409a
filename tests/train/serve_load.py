r"""Load and harm for `python -m train serve`, and what batching is worth.

    python tests/train/serve_load.py RUN [--photos FOLDER]

Starts the service as a process. First 500 requests at once, twice: photos as bodies, forms and chunks among truncated
files, 50 MB bodies with and without their length, bombs, wrong types, and clients that are slow or hang up. Every
status code is checked (what gets a 503 is sent again a second later, as Retry-After says), the answers to photos have
to be those of an idle server, its memory may not grow by more than a bound, and SIGTERM has to end it with status 0.
Then the same load of photos on a server with batches and on one with `--max-batch 1`, in turns: medians of throughput
and latency. A larger network, which nobody has trained:

    python -c "from pathlib import Path; from tests.train.runs import make_run; \
        make_run(Path('RUN'), 'resnet50', tuple(map(str, range(1000))), 224)"
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import re
import signal
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from PIL import Image

UPLOAD_TIMEOUT_S = 20
GROWTH_MB = 300  # that the memory of the server may grow by between two rounds
LARGE = 50_000_000  # bytes
CLOSED = 0  # in place of a status: no answer
_PATIENCE = aiohttp.ClientTimeout(total=600)


class Server:
    """The service as a process; a context manager that ends it by SIGTERM and looks at its exit status."""

    def __init__(self, run: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "train", "serve", str(run), "--port", "0", "--device", "cpu", *flags]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        found = re.match(r"(http://\S+) serves", line)
        assert found, line + self._process.stderr.read()
        self.url = found[1]

    def memory_mb(self, what: str = "VmRSS") -> float:
        """Resident memory, or with VmHWM the most that it has been."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(rf"{what}:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1e3

    def __enter__(self) -> Server:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        assert self._process.poll() is None, f"the server has ended with {self._process.returncode}"
        self._process.send_signal(signal.SIGTERM)
        said = self._process.communicate(timeout=120)[1]
        assert (self._process.returncode, said) == (0, "stopped\n"), (self._process.returncode, said)


def photos_of(folder: Path | None, count: int) -> list[bytes]:
    """Images of a folder, or made-up ones of ImageNet's usual size."""
    if folder is not None:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        assert found, f"no images in {folder}"
        return [path.read_bytes() for path in found[:count]]
    rng, photos = np.random.default_rng(0), []
    for _ in range(count):
        small = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        photos.append(buffer.getvalue())
    return photos


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


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=_PATIENCE)


def _quantiles(seconds: list[float]) -> str:
    found = np.percentile(seconds, [50, 95, 99])
    return "  ".join(f"p{q} {value:.2f} s" for q, value in zip((50, 95, 99), found, strict=True))


async def harm(server: Server, photos: list[bytes]) -> None:
    """Two rounds of 500 requests at once."""
    async with _session() as session:
        idle = Attack(session, server.url, photos)
        for number in range(len(photos)):
            assert await idle.photo(number) == 200
        memory = [server.memory_mb()]
        for turn in (1, 2):
            attack = Attack(session, server.url, photos)
            requests, begin = attack.requests(), time.perf_counter()
            found = await asyncio.gather(*(attack.until_taken(send) for _, _, send in requests))
            taken = time.perf_counter() - begin
            pairs = list(zip(requests, found, strict=True))
            wrong = Counter((what, status, got) for (what, status, _), got in pairs if got != status)
            assert not wrong, f"(what, expected, got): {dict(wrong)}"
            assert attack.answers == idle.answers, "not what an idle server says"
            async with session.get(f"{server.url}/health") as health:
                assert (health.status, (await health.json())["waiting"]) == (200, 0)
            memory.append(server.memory_mb())
            codes = Counter(got for got in found)
            print(
                f"round {turn}: 500 requests at once in {taken:.1f} s; statuses {dict(sorted(codes.items()))}"
            )
            print(f"  503s in between, after which they were sent again: {attack.again}")
            print(f"  of the {codes[200]} photos among them: {_quantiles(attack.seconds)}")
    peak = server.memory_mb("VmHWM")
    print(
        f"  memory before, and after the rounds: {', '.join(f'{m:.0f}' for m in memory)} MB; peak {peak:.0f} MB"
    )
    assert memory[2] - memory[1] <= GROWTH_MB, f"grew by more than {GROWTH_MB} MB"


async def load(server: Server, photos: list[bytes], requests: int, clients: int) -> tuple[float, list[float]]:
    """Photos from so many clients at a time: images/s, and seconds each."""
    async with _session() as session:
        attack = Attack(session, server.url, photos)
        left = iter(range(requests))

        async def client() -> None:
            for number in left:
                assert await attack.photo(4 * number) == 200  # as a body

        begin = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return requests / (time.perf_counter() - begin), attack.seconds


def compare(options: argparse.Namespace, photos: list[bytes]) -> None:
    """The same load with batches and without, in turns."""
    flags = ("--queue", "1024", "--timeout-s", "300")
    with (
        Server(options.run, *flags, "--max-batch", "32") as batches,
        Server(options.run, *flags, "--max-batch", "1") as single,
    ):
        rates: dict[str, list[float]] = {"--max-batch 32": [], "--max-batch 1": []}
        seconds: dict[str, list[float]] = {name: [] for name in rates}
        for turn in range(options.repeats + 1):
            for name, server in zip(rates, (batches, single), strict=True):
                rate, each = asyncio.run(load(server, photos, options.requests, options.clients))
                if turn:  # the first warms up
                    rates[name].append(rate)
                    seconds[name] += each
    print(
        f"{options.requests} photos from {options.clients} clients, {options.repeats} times each, in turns:"
    )
    for name in rates:
        low, high = min(rates[name]), max(rates[name])
        print(
            f"  {name:14}  median {statistics.median(rates[name]):.1f} images/s ({low:.1f} … {high:.1f})  "
            f"{_quantiles(seconds[name])}"
        )
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    print(f"  ratio by turn: median {statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--photos", type=Path, help="folder of images (default: made-up ones)")
    parser.add_argument("--part", choices=("harm", "batching", "all"), default="all")
    parser.add_argument("--requests", type=int, default=400, help="photos a turn")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    images = photos_of(given.photos, 16)
    if given.part != "batching":
        limits = ("--queue", "500", "--timeout-s", "300", "--upload-timeout-s", str(UPLOAD_TIMEOUT_S))
        with Server(given.run, *limits) as attacked:
            asyncio.run(harm(attacked, images))
    if given.part != "harm":
        compare(given, images)
