r"""Load and harm for `python -m train serve`, and what batching is worth.

    python -m tests.train.serve_load RUN [--photos FOLDER]

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
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from tests.train.serve_clients import Attack, session

UPLOAD_TIMEOUT_S = 20
GROWTH_MB = 300  # that the memory of the server may grow by between two rounds


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

    def cpu_s(self) -> float:
        """CPU time so far, of all threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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


def _quantiles(seconds: list[float]) -> str:
    found = np.percentile(seconds, [50, 95, 99])
    return "  ".join(f"p{q} {value:.2f} s" for q, value in zip((50, 95, 99), found, strict=True))


async def harm(server: Server, photos: list[bytes]) -> None:
    """Two rounds of 500 requests at once."""
    async with session() as client_session:
        idle = Attack(client_session, server.url, photos)
        for number in range(len(photos)):
            assert await idle.photo(number) == 200
        memory = [server.memory_mb()]
        for turn in (1, 2):
            attack = Attack(client_session, server.url, photos)
            requests, begin = attack.requests(), time.perf_counter()
            found = await asyncio.gather(*(attack.until_taken(send) for _, _, send in requests))
            taken = time.perf_counter() - begin
            pairs = list(zip(requests, found, strict=True))
            wrong = Counter((what, status, got) for (what, status, _), got in pairs if got != status)
            assert not wrong, f"(what, expected, got): {dict(wrong)}"
            assert attack.answers == idle.answers, "not what an idle server says"
            async with client_session.get(f"{server.url}/health") as health:
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
    async with session() as client_session:
        attack = Attack(client_session, server.url, photos)
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
        servers = {"--max-batch 32": batches, "--max-batch 1": single}
        seconds: dict[str, list[float]] = {name: [] for name in servers}
        rates: dict[str, list[float]] = {name: [] for name in servers}
        per_cpu: dict[str, list[float]] = {name: [] for name in servers}
        for turn in range(options.repeats + 1):
            for name, server in servers.items():
                before = server.cpu_s()
                rate, each = asyncio.run(load(server, photos, options.requests, options.clients))
                if turn:  # the first warms up
                    seconds[name] += each
                    rates[name].append(rate)
                    per_cpu[name].append(options.requests / (server.cpu_s() - before))
    print(
        f"{options.requests} photos from {options.clients} clients, {options.repeats} times each, in turns:"
    )
    for name in servers:
        print(f"  {name:14}  images/s {_spread(rates[name])}  {_quantiles(seconds[name])}")
        # What other processes leave of the machine changes the former, but hardly this.
        print(f"  {'':14}  images per CPU second of the server {_spread(per_cpu[name])}")
    for what, values in (("images/s", rates), ("images per CPU second", per_cpu)):
        ratios = [a / b for a, b in zip(*values.values(), strict=True)]
        print(f"  {what}, with batches ÷ without, by turn: {_spread(ratios)}")


def _spread(values: list[float]) -> str:
    return f"median {statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})"


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
