"""`python -m bench packing`: how fast class folders are packed, against peers and ceilings, interleaved."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.decode_ceiling import decode_all
from bench.intervals import ratio_figures
from bench.measure import children
from bench.page_cache import state
from bench.processes import running
from bench.report import ratio_lines
from loader.resolve import usable_cores
from shard.errors import FeedlineError
from train.environment import environment

# name: title; the order of the table
CONTESTANTS = {
    "tar": "tar cf (nothing checked, nothing shuffled)",
    "shardwriter": "webdataset ShardWriter (nothing checked)",
    "header": "shard build --check header",
    "decode": "shard build (every image decoded)",
    "ceiling": "decode ceiling (libjpeg-turbo alone)",
}
# Of all: some shards per worker, as in a large dataset, where the last ones do not leave workers idle.
SHARD_BYTES = 64_000_000
_FIRST_LOOK_S, _INTERVAL_S = 0.1, 1.0  # at the memory: each stops the process for some milliseconds
_RATIOS = (("header", "shardwriter"), ("header", "tar"), ("decode", "ceiling"))


def packing(source: Path, scratch: Path, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Pack `source` (class folders of JPEGs) with every contestant in turn, `repeats` times, into `scratch`.

    Times are of whole commands, start of the interpreter included, until files are complete; what the system has
    not yet written to disk is flushed between them. Only the decode ceiling is timed without its start. All files are
    read once before, so that the first contestant does not find another page cache than the others.

    Returns:
        The record, JSON-able: seconds per repeat, medians, ratios, peak memory (of all its processes).

    Raises:
        FeedlineError: no images, a contestant failed, or `scratch` cannot be written.
    """
    files = [path for path in sorted(source.glob("*/*")) if path.is_file()]
    if not files:
        raise FeedlineError(f"{source} has no <class>/<image>; give class folders")
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    peak_mib: dict[str, float] = {}
    names = list(CONTESTANTS)
    say("reading all files once")
    size_bytes = sum(len(path.read_bytes()) for path in files)
    with _folder(scratch) as folder:
        for repeat in range(repeats):
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                out = folder / "packed"
                shutil.rmtree(out, ignore_errors=True)
                os.sync()
                took, peak = _measure(name, source, files, out)
                seconds[name].append(took)
                if peak is not None:
                    peak_mib[name] = max(peak, peak_mib.get(name, 0.0))
                say(f"repeat {repeat + 1}, {CONTESTANTS[name]}: {len(files) / took:,.0f} images/s")
    return {
        "benchmark": "packing",
        "environment": environment(torch.device("cpu")),
        "settings": {
            "images": len(files), "bytes": size_bytes, "cores": usable_cores(), "repeats": repeats,
            "page_cache": state(size_bytes), "shard_bytes": SHARD_BYTES,
        },
        "contestants": {
            name: _figures(title, seconds[name], len(files), size_bytes, peak_mib.get(name))
            for name, title in CONTESTANTS.items()
        },
        **ratio_figures({f"{above} / {below}": (seconds[below], seconds[above]) for above, below in _RATIOS}),
    }  # fmt: skip


@contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    """A folder of our own, which is removed whatever happens; what else lies in `scratch` is not touched."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix="feedline-packing-", dir=scratch)
    except OSError as error:
        raise FeedlineError(
            f"--scratch is {scratch}, where nothing can be written: {error.strerror}"
        ) from error
    with made as folder:
        yield Path(folder)


def _figures(
    title: str, seconds: list[float], images: int, size_bytes: int, peak_mib: float | None
) -> dict[str, Any]:
    return {
        "title": title,
        "seconds": [round(one, 3) for one in seconds],
        "images_per_s": round(images / median(seconds), 1),
        "mb_per_s": round(size_bytes / median(seconds) / 1e6, 1),
        "peak_mib": None if peak_mib is None else round(peak_mib, 1),
    }


def _measure(name: str, source: Path, files: list[Path], out: Path) -> tuple[float, float | None]:
    """Seconds of a contestant, and its peak memory in MiB where it is a command of its own."""
    return (
        (decode_all(files, usable_cores()), None) if name == "ceiling" else _run(_command(name, source, out))
    )


def _command(name: str, source: Path, out: Path) -> list[str]:
    if name == "tar":
        out.mkdir()
        return ["tar", "cf", str(out / "all.tar"), "-C", str(source), "."]
    if name == "shardwriter":
        return [sys.executable, "-m", "bench.peers.shardwriter", str(source), str(out), str(SHARD_BYTES)]
    command = [sys.executable, "-m", "shard", "build", str(source), str(out)]
    return [*command, "--check", name, "--shard-bytes", str(SHARD_BYTES)]


def _run(command: list[str]) -> tuple[float, float | None]:
    """Wall seconds of a command, and the peak resident memory of its processes together in MiB; None: too short."""
    began = time.perf_counter()
    with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        looks: list[float] = []
        done = threading.Event()

        def watch() -> None:
            pause_s = _FIRST_LOOK_S
            while not done.wait(pause_s):
                pause_s = _INTERVAL_S
                looks.append(sum(map(_resident_mib, [str(child.pid), *children(str(child.pid))])))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            said = child.communicate()[1]
            took = time.perf_counter() - began
        finally:
            done.set()
            watcher.join()
    if child.returncode:
        raise FeedlineError(f"{' '.join(command)} ended with status {child.returncode}: {said.strip()}")
    return took, max(looks, default=None)


def _resident_mib(pid: str) -> float:
    """Proportional set size: memory that processes share counts once."""
    try:
        text = Path("/proc", pid, "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("Pss:")), 0.0)


def table(record: dict[str, Any]) -> str:
    """The record for a terminal."""
    lines = [f"{'':44}{'images/s':>10}{'MB/s':>10}{'peak MiB':>10}"]
    for one in record["contestants"].values():
        peak = "" if one["peak_mib"] is None else f"{one['peak_mib']:,.0f}"
        lines.append(f"{one['title']:44}{one['images_per_s']:>10,.0f}{one['mb_per_s']:>10,.0f}{peak:>10}")
    return "\n".join([*lines, "", *ratio_lines(record)])
