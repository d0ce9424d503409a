"""What a run tells about itself without making the accelerator wait: losses, rates, metrics, progress."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from shard.errors import FeedlineError
from train.distributed import World

# Fields of metrics.jsonl that depend on the clock and the machine; all others come out alike in a repeated run.
MEASURED = ("images_per_s", "data_wait_share")


class NonFiniteError(FeedlineError):
    """The loss or the weights are no longer finite. Raised on every rank at once.

    Attributes:
        details: step, lr and the sample ids of the ranks where it happened.
    """

    def __init__(self, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step on one rank: its number from 1, learning rate, and the sample ids of its micro-batches."""

    step: int
    lr: float
    ids: list[torch.Tensor]


class LossWindow:
    """Losses of the steps since the last look, kept on the device.

    Args:
        size: most steps between two looks.
        world: ranks whose losses are averaged.
    """

    def __init__(self, size: int, world: World) -> None:
        self._buffer = torch.zeros(size, device=world.device)
        self._world = world
        self._count = 0
        self._records: deque[StepRecord] = deque(maxlen=size)

    def add(self, loss: torch.Tensor, record: StepRecord) -> None:
        """Note a step's loss (a scalar on the device); does not wait for the device."""
        self._buffer[self._count] = loss
        self._records.append(record)
        self._count += 1

    def look(self) -> list[float]:
        """Mean over ranks of the losses since the last look; waits for the device. Collective.

        Raises:
            NonFiniteError: a loss is not finite.
        """
        local = self._buffer[: self._count]
        count, self._count = self._count, 0
        losses: list[float] = (self._world.sum_(local.clone()) / self._world.size).tolist()
        records = list(self._records)[-count:] if count else []
        for i, record in enumerate(records):
            if not abs(losses[i]) < float("inf"):
                raise self._failure("the loss", record, guilty=not bool(local[i].isfinite()))
        return losses

    def check_weights(self, model: torch.nn.Module) -> None:
        """Make sure that no weight is infinite or NaN: the last update may have done it unseen. Collective.

        Raises:
            NonFiniteError: names the last step.
        """
        norms = torch._foreach_norm(list(model.parameters()))
        if not torch.stack([n.float() for n in norms]).isfinite().all() and self._records:
            raise self._failure("a weight", self._records[-1], guilty=True)

    def _failure(self, what: str, record: StepRecord, *, guilty: bool) -> NonFiniteError:
        mine = torch.cat(record.ids).tolist() if guilty else []
        ids = [i for rank_ids in self._world.gather(mine) for i in rank_ids]
        return NonFiniteError(
            f"{what} is not finite at step {record.step} (lr {record.lr:.6g}), with the samples "
            f"{', '.join(map(str, ids[:8]))}{', …' if len(ids) > 8 else ''}; lower --lr, lengthen "
            "--warmup-epochs or raise --precision",
            {"what": what, "step": record.step, "lr": record.lr, "sample_ids": ids},
        )


@dataclass(slots=True)
class Rate:
    """Steps done in some time, whole iterations: fetch, step and the look at the losses.

    Attributes:
        steps: optimiser steps.
        seconds: time they took.
        wait_s: of it, time spent waiting for the loader (on rank 0).
    """

    steps: int = 0
    seconds: float = 0.0
    wait_s: float = 0.0

    def add(self, other: Rate) -> None:
        """Add another stretch."""
        self.steps += other.steps
        self.seconds += other.seconds
        self.wait_s += other.wait_s

    def images_per_s(self, batch_size: int) -> float | None:
        """Rate for a global batch of `batch_size`; None before anything was measured."""
        return self.steps * batch_size / self.seconds if self.steps and self.seconds else None

    @property
    def wait_share(self) -> float | None:
        """Part of the time spent waiting for data, 0 … 1."""
        return self.wait_s / self.seconds if self.steps and self.seconds else None


class Meter:
    """Measures stretches of steps. The first `warmup` steps of the process are left out.

    Attributes:
        total: everything measured so far.
    """

    def __init__(self, device: torch.device, warmup: int) -> None:
        self.total = Rate()
        self._window, self._stretch = Rate(), Rate()
        self._device, self._warmup = device, warmup
        self._began = time.perf_counter()

    def start(self) -> None:
        """Start the clock, after work that is not a step."""
        self._stretch = Rate()
        self._began = time.perf_counter()

    def count(self, wait_s: float) -> None:
        """Count a step that waited `wait_s` for its data."""
        if self._warmup > 0:
            self._warmup -= 1
            if self._warmup == 0:
                if self._device.type == "cuda":
                    torch.cuda.synchronize()  # once per run: the warm-up must have left the queue
                self.start()
            return
        self._stretch.add(Rate(1, 0.0, wait_s))

    def stop(self) -> None:
        """Stop the clock; the device must have finished its work."""
        if self._warmup == 0:
            self._stretch.seconds = time.perf_counter() - self._began
            self._window.add(self._stretch)
        self.start()

    def report(self) -> Rate:
        """Rate since the last report."""
        window, self._window = self._window, Rate()
        self.total.add(window)
        return window


class Metrics:
    """Writes metrics.jsonl, one object a line, visible at once. Writes nothing but on rank 0.

    Args:
        path: the file.
        keep_bytes: length of what stays of it: a resumed run repeats the rest.
        active: whether to write.
    """

    def __init__(self, path: Path, keep_bytes: int, *, active: bool) -> None:
        self._file: TextIO | None = None
        if active:
            with path.open("ab") as file:
                file.truncate(min(keep_bytes, path.stat().st_size))
            self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append a line."""
        if self._file is not None:
            try:
                self._file.write(json.dumps(values) + "\n")
                self._file.flush()
            except OSError as error:
                raise FeedlineError(f"cannot write {self._file.name}: {error.strerror}") from error

    def size(self) -> int:
        """Length of the file in bytes."""
        return 0 if self._file is None else os.fstat(self._file.fileno()).st_size

    def sync(self) -> None:
        """Force the file to disk; from any thread.

        Raises:
            FeedlineError: the disk does not take it.
        """
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise FeedlineError(f"cannot write {self._file.name}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class Progress:
    """Progress on stderr: one line that is overwritten on a terminal, plain lines elsewhere."""

    def __init__(self, *, active: bool) -> None:
        self._active = active
        self._terminal = sys.stderr.isatty()
        self._open = False

    def update(self, text: str) -> None:
        """Show where the run stands."""
        if self._active:
            print(
                f"\r{text}\x1b[K" if self._terminal else text,
                end="" if self._terminal else "\n",
                file=sys.stderr,
            )
            sys.stderr.flush()
            self._open = self._terminal

    def line(self, text: str) -> None:
        """Write a line that stays."""
        if self._active:
            print(("\n" if self._open else "") + text, file=sys.stderr, flush=True)
            self._open = False


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


def rate_text(images_per_s: float | None, wait_share: float | None, left_s: float | None) -> str:
    """Throughput, share of time waited for data, and time left, for the progress line."""
    if images_per_s is None or wait_share is None or left_s is None:
        return "warming up"
    return f"{images_per_s:.0f} images/s  data wait {wait_share:.1%}  left {clock(left_s)}"
