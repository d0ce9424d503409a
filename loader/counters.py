"""What the loader has done and where it waited: counters at any time, and a Chrome trace."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

_MAX_EVENTS = 100_000  # of a trace; older ones are dropped


@dataclass(slots=True)
class Counters:
    """Totals since the loader was made. Times are seconds of the thread that iterates.

    Attributes:
        batches: handed out.
        samples: valid ones in them.
        bad: samples that were masked because they could not be read or decoded.
        bytes_read: encoded bytes of all samples read.
        wait_s: time in the loader: all of a step that is not the user's.
        read_wait_s: part of it that waited for bytes.
        decode_wait_s: part of it that waited for pixels.
        fetch_wait_s: part of it that waited for shards from an object store.
        queue: batches in work when the newest one was asked for, itself included.
        prefetch: batches kept in work.
        read_ahead: more batches whose bytes are asked for.
    """

    batches: int = 0
    samples: int = 0
    bad: int = 0
    bytes_read: int = 0
    wait_s: float = 0.0
    read_wait_s: float = 0.0
    decode_wait_s: float = 0.0
    fetch_wait_s: float = 0.0
    queue: int = 0
    prefetch: int = 0
    read_ahead: int = 0

    def as_dict(self) -> dict[str, Any]:
        """All of them by name."""
        return asdict(self)


@dataclass(slots=True)
class Tracer:
    """Collects spans for a Chrome trace, and marks them as NVTX ranges for Nsight.

    Attributes:
        enabled: nothing is collected otherwise.
        nvtx: mark ranges too; needs CUDA.
    """

    enabled: bool = False
    nvtx: bool = False
    _events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_MAX_EVENTS))

    @contextmanager
    def span(self, name: str, **details: int) -> Iterator[None]:
        """Record the time of a block of the calling thread."""
        if not self.enabled:
            yield
            return
        if self.nvtx:
            torch.cuda.nvtx.range_push(f"feedline {name}")  # type: ignore[no-untyped-call]
        began = time.perf_counter_ns()
        try:
            yield
        finally:
            took = time.perf_counter_ns() - began
            if self.nvtx:
                torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]
            self._events.append(
                {
                    "name": name, "ph": "X", "ts": began / 1e3, "dur": took / 1e3, "pid": 0,
                    "tid": threading.get_ident(), "args": details,
                }
            )  # fmt: skip

    def export(self, path: Path) -> None:
        """Write the spans as Chrome's trace event format (chrome://tracing, ui.perfetto.dev); times in µs."""
        path.write_text(json.dumps({"traceEvents": list(self._events), "displayTimeUnit": "ms"}))
