"""Slow-downs planted into our code, for the guard to find: `python -m tests.bench.slowed KIND guard --data …`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch.nn.functional

import bench.__main__
import bench.commands.guard
import loader.reader
import loader.torch_backend
import train.step

# Kind → the stage that has to be named.
STAGES = {"none": "", "reader": "read", "threads": "loader", "resize": "transform", "step": "step"}
READ_SLEEP_S, STEP_SLEEP_S = 0.0001, 0.005  # a sample; a step (of some 25 ms)


Put = Callable[[Any, str, Any], None]


def plant(kind: str, put: Put = setattr) -> None:
    """Make a part of ours slower: for the rest of this process, or as long as `put` lets it be."""
    if kind == "reader":
        _before(put, loader.reader._File, "read", lambda: time.sleep(READ_SLEEP_S))
    elif kind == "threads":
        init = loader.torch_backend.TorchBackend.__init__

        def halved(self: Any, device: Any, threads: int, *rest: Any) -> None:
            init(self, device, max(1, threads // 2), *rest)

        put(loader.torch_backend.TorchBackend, "__init__", halved)
    elif kind == "resize":
        _twice(put)
    elif kind == "step":
        _before(put, train.step.TrainStep, "update", lambda: time.sleep(STEP_SLEEP_S))
    elif kind != "none":
        raise SystemExit(f"there is no planted slow-down {kind!r}; choose one of {', '.join(STAGES)}")


def _before(put: Put, owner: type, name: str, extra: Any) -> None:
    original = getattr(owner, name)

    def slower(*args: Any, **kwargs: Any) -> Any:
        extra()
        return original(*args, **kwargs)

    put(owner, name, slower)


def _twice(put: Put) -> None:
    """The backend's resize, and nobody else's: the reference calls torch's own."""

    class Functional:
        pad = staticmethod(torch.nn.functional.pad)

        @staticmethod
        def interpolate(*args: Any, **kwargs: Any) -> Any:
            torch.nn.functional.interpolate(*args, **kwargs)
            return torch.nn.functional.interpolate(*args, **kwargs)

    put(loader.torch_backend, "F", Functional)


if __name__ == "__main__":
    plant(sys.argv[1])
    bench.commands.guard.PROGRAM = (sys.executable, "-m", "tests.bench.slowed", sys.argv[1])
    sys.exit(bench.__main__.main(sys.argv[2:]))
