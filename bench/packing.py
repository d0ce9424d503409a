"""`python -m bench packing`: how fast class folders are packed, against peers and ceilings, interleaved."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import simplejpeg
import torch

from bench.measure import children
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
_INTERVAL_S = 1.0  # between two looks at the memory: each stops the process for some milliseconds
_RATIOS = (("header", "shardwriter"), ("header", "tar"), ("decode", "ceiling"))


def packing(source: Path, scratch: Path, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Pack `source` (class folders of JPEGs) with every contestant in turn, `repeats` times, into `scratch`.

    Times are of whole commands, start of the interpreter included, until files are complete; what the system has
    not yet written to disk is flushed between them. Only the decode ceiling is timed without its start.

    Returns:
        The record, JSON-able: seconds per repeat, medians, ratios, peak memory (of all its processes).

    Raises:
        FeedlineError: no images, or a contestant failed.
    """
    files = [path for path in sorted(source.glob("*/*")) if path.is_file()]
    if not files:
        raise FeedlineError(f"{source} has no <class>/<image>; give class folders")
    size_bytes = sum(path.stat().st_size for path in files)
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    peak_mib: dict[str, float] = {}
    names = list(CONTESTANTS)
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            out = scratch / "packing"
            shutil.rmtree(out, ignore_errors=True)
            scratch.mkdir(parents=True, exist_ok=True)
            os.sync()
            if name == "ceiling":
                seconds[name].append(_decode_all(files, usable_cores()))
                continue
            took, peak = _run(_command(name, source, out))
            seconds[name].append(took)
            peak_mib[name] = max(peak, peak_mib.get(name, 0))
            say(f"repeat {repeat + 1}, {CONTESTANTS[name]}: {len(files) / took:,.0f} images/s")
    shutil.rmtree(scratch / "packing", ignore_errors=True)
    return {
        "benchmark": "packing",
        "environment": environment(torch.device("cpu")),
        "settings": {
            "images": len(files), "bytes": size_bytes, "cores": usable_cores(), "repeats": repeats, "page_cache": "hot",
            "shard_bytes": SHARD_BYTES,
        },
        "contestants": {
            name: {
                "title": title,
                "seconds": [round(one, 3) for one in seconds[name]],
                "images_per_s": round(len(files) / median(seconds[name]), 1),
                "mb_per_s": round(size_bytes / median(seconds[name]) / 1e6, 1),
                "peak_mib": round(peak_mib[name], 1) if name in peak_mib else None,
            }
            for name, title in CONTESTANTS.items()
        },
        "ratios": {
            f"{above} / {below}": round(
                median(b / a for a, b in zip(seconds[above], seconds[below], strict=True)), 3
            )
            for above, below in _RATIOS
        },
    }  # fmt: skip


def _command(name: str, source: Path, out: Path) -> list[str]:
    if name == "tar":
        out.mkdir()
        return ["tar", "cf", str(out / "all.tar"), "-C", str(source), "."]
    if name == "shardwriter":
        return [sys.executable, "-m", "bench.peers.shardwriter", str(source), str(out), str(SHARD_BYTES)]
    command = [sys.executable, "-m", "shard", "build", str(source), str(out)]
    return [*command, "--check", name, "--shard-bytes", str(SHARD_BYTES)]


def _run(command: list[str]) -> tuple[float, float]:
    """Wall seconds of a command, and the peak resident memory of its processes together in MiB."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        peak, done = 0.0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(_INTERVAL_S):
                peak = max(peak, sum(map(_resident_mib, [str(child.pid), *children(str(child.pid))])))

        watcher = threading.Thread(target=watch)
        watcher.start()
        said = child.communicate()[1]
        took = time.perf_counter() - began
        done.set()
        watcher.join()
    if child.returncode:
        raise FeedlineError(f"{' '.join(command)} ended with status {child.returncode}: {said}")
    return took, peak


def _resident_mib(pid: str) -> float:
    """Proportional set size: memory that processes share counts once."""
    try:
        text = Path("/proc", pid, "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("Pss:")), 0.0)


def _decode_all(files: list[Path], workers: int) -> float:
    """Seconds that `workers` processes take to decode all files, once they have started."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers + 1)
    processes = [
        context.Process(target=_decode_share, args=([str(f) for f in files[i::workers]], barrier))
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    return time.perf_counter() - began


def _decode_share(files: list[str], barrier: Any) -> None:
    scratch = np.empty(1 << 20, np.uint8)
    barrier.wait()
    for name in files:
        data = Path(name).read_bytes()
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        if scratch.size < height * width * 3:
            scratch = np.empty(height * width * 3, np.uint8)
        simplejpeg.decode_jpeg(data, "RGB", buffer=scratch[: height * width * 3], strict=False)


def table(record: dict[str, Any]) -> str:
    """The record for a terminal."""
    lines = [f"{'':44}{'images/s':>10}{'MB/s':>10}{'peak MiB':>10}"]
    for one in record["contestants"].values():
        peak = "" if one["peak_mib"] is None else f"{one['peak_mib']:,.0f}"
        lines.append(f"{one['title']:44}{one['images_per_s']:>10,.0f}{one['mb_per_s']:>10,.0f}{peak:>10}")
    return "\n".join([*lines, "", *(f"{name}: {value:.2f}" for name, value in record["ratios"].items())])
