"""Slow-downs planted into our code, for the guard to find: `python -m tests.bench.planted KIND guard --data …`."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch.nn.functional

import bench.__main__
import loader.loader
import loader.reader
import loader.torch_backend
import train.step

# Kind → the stage that has to be named.
STAGES = {"none": "", "reader": "read", "threads": "loader", "resize": "transform", "step": "step"}
READ_SLEEP_S, STEP_SLEEP_S = 0.0001, 0.005  # a sample; a step (of some 25 ms)


def plant(kind: str) -> None:
    """Make a part of ours slower, for the rest of this process."""
    if kind == "reader":
        _before(loader.reader._File, "read", lambda: time.sleep(READ_SLEEP_S))
    elif kind == "threads":
        init = loader.loader.Loader.__init__

        def halved(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            self._threads = max(1, self._threads // 2)

        loader.loader.Loader.__init__ = halved  # type: ignore[method-assign]
    elif kind == "resize":
        _twice()
    elif kind == "step":
        _before(train.step.TrainStep, "update", lambda: time.sleep(STEP_SLEEP_S))
    elif kind != "none":
        raise SystemExit(f"there is no planted slow-down {kind!r}; choose one of {', '.join(STAGES)}")


def _before(owner: type, name: str, extra: Any) -> None:
    original = getattr(owner, name)

    def slower(*args: Any, **kwargs: Any) -> Any:
        extra()
        return original(*args, **kwargs)

    setattr(owner, name, slower)


def _twice() -> None:
    """The backend's resize, and nobody else's: the reference calls torch's own."""

    class Functional:
        pad = staticmethod(torch.nn.functional.pad)

        @staticmethod
        def interpolate(*args: Any, **kwargs: Any) -> Any:
            torch.nn.functional.interpolate(*args, **kwargs)
            return torch.nn.functional.interpolate(*args, **kwargs)

    loader.torch_backend.F = Functional  # type: ignore[assignment]


if __name__ == "__main__":
    plant(sys.argv[1])
    sys.exit(bench.__main__.main(sys.argv[2:]))
