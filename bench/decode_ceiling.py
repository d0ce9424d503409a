"""How fast libjpeg-turbo alone decodes files with all cores; in a module of its own, which processes start quickly."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np
import simplejpeg

from shard.errors import FeedlineError

_START_S = 120.0


def decode_all(files: list[Path], workers: int) -> float:
    """Seconds that `workers` processes take to decode all files, once they have started.

    Raises:
        FeedlineError: one of them cannot be decoded.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers + 1)
    processes = [
        context.Process(target=decode_share, args=([str(f) for f in files[i::workers]], barrier), daemon=True)
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        barrier.wait(_START_S)
        began = time.perf_counter()
        for process in processes:
            process.join()
        took = time.perf_counter() - began
    except BrokenBarrierError as error:
        raise FeedlineError(f"the decode ceiling did not start within {_START_S:.0f} s") from error
    finally:
        for process in processes:
            process.terminate()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise FeedlineError(
            f"the decode ceiling failed (status {failed[0]}, see above); is every file of --source a JPEG?"
        )
    return took


def decode_share(files: list[str], barrier: Any) -> None:
    """Meet the others, and decode."""
    scratch = np.empty(1 << 20, np.uint8)
    barrier.wait()
    for name in files:
        data = Path(name).read_bytes()
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        if scratch.size < height * width * 3:
            scratch = np.empty(height * width * 3, np.uint8)
        simplejpeg.decode_jpeg(data, "RGB", buffer=scratch[: height * width * 3], strict=False)
