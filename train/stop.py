"""When a run ends before its last epoch: signals, on which all ranks agree, and what evaluations say."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Literal

from shard.errors import FeedlineError
from train.distributed import World

# Ranks ask each other about once in this time: each time the fastest waits for the slowest.
_AGREE_S = 1.0
_MOST_CALLS = 50  # between two agreements, should the last few have been untypically quick

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: try again later
_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: REQUEUE}


@dataclass(frozen=True, slots=True, kw_only=True)
class StopConfig:
    """Early end."""

    patience: int | None = None
    """Evaluations in a row without improvement after which the run ends; None: never."""
    min_change: float = 0.0
    """Change of the metric that counts as an improvement, in its unit."""
    stop_metric: Literal["top1", "top5", "map", "loss"] = "top1"
    """Metric of the evaluation that patience and target look at; map is that of multi-label datasets."""
    stop_mode: Literal["auto", "max", "min"] = "auto"
    """Whether larger or smaller is better; auto: smaller for the loss."""
    target: float | None = None
    """The run ends as soon as the metric reaches this value."""

    def __post_init__(self) -> None:
        """Reject what could never or would always end a run."""
        if self.patience is not None and self.patience < 1:
            raise FeedlineError(f"patience is {self.patience}; it must be at least 1")
        if not self.min_change >= 0:
            raise FeedlineError(f"min_change is {self.min_change}; it must not be negative")

    @property
    def sign(self) -> int:
        """1 where larger is better, else -1."""
        smaller = self.stop_mode == "min" or (self.stop_mode == "auto" and self.stop_metric == "loss")
        return -1 if smaller else 1


@dataclass(slots=True, kw_only=True)
class Plateau:
    """What patience has seen; part of a checkpoint.

    Attributes:
        best: best value that counted as an improvement; None before the first evaluation.
        stale: evaluations since then.
    """

    best: float | None = None
    stale: int = 0

    def observe(self, config: StopConfig, result: Mapping[str, float]) -> str:
        """Take an evaluation in, and return why the run should end; "" where it should not.

        As in Keras' EarlyStopping, slow progress counts as none: a value is compared with the last one that was an
        improvement by more than `min_change`.
        """
        value = result[config.stop_metric]
        if self.improves(config, value):
            self.best, self.stale = value, 0
        else:
            self.stale += 1
        return self.verdict(config, value)

    def improves(self, config: StopConfig, value: float) -> bool:
        """Whether an evaluation of this value counts as an improvement."""
        return self.best is None or config.sign * (value - self.best) > config.min_change

    def verdict(self, config: StopConfig, value: float) -> str:
        """Why a run should end whose newest evaluation, which has been taken in, is `value`; "" where it should not."""
        sign, name = config.sign, config.stop_metric
        if config.target is not None and sign * (value - config.target) >= 0:
            return f"{name} {value:.4g} reached the target {config.target:g}"
        if config.patience is not None and self.stale >= config.patience:
            return f"{name} has not improved on {self.best:.4g} in {self.stale} evaluations"
        return ""


class Stopped(Exception):
    """The run was stopped by a signal after its checkpoint was written. Raised on every rank.

    Attributes:
        signal: number of the signal.
        status: exit status: 143 after SIGTERM, 130 after SIGINT, 75 (to be queued again) after SIGUSR1.
    """

    orderly = True  # see train.peers: no failure that the other ranks should follow

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number
        self.status = _STATUS[signal.Signals(number)]


class StopSignal:
    """Catches SIGTERM, SIGINT and SIGUSR1 (of Slurm) while it is entered; a second SIGINT leaves at once.

    Attributes:
        received: number of the signal that this process got, 0 if none.
        agreed: number of the signal that the ranks have agreed on, 0 if none.
    """

    def __init__(self, world: World) -> None:
        self.received = self.agreed = 0
        self._world = world
        self._before: dict[int, Any] = {}
        self._interval = self._left = 1  # calls of `due`, the same on every rank
        self._asked = time.perf_counter()

    def due(self) -> bool:
        """Whether all ranks stop now. Collective, to be called after every step.

        Alone it answers every time. Several ranks ask each other about once a second, counted in calls: the number
        of calls until the next time is agreed on with the answer.
        """
        self._left -= 1
        if not self.agreed and (self._world.size == 1 or self._left <= 0):
            self._agree()
        return self.agreed != 0

    def pace(self) -> None:
        """Tell that calls come at another pace from here on. Collective: every rank at the same place."""
        self._interval = self._left = 1
        self._asked = time.perf_counter()

    def _agree(self) -> None:
        now = time.perf_counter()
        call_ms = max(1, round(1000 * (now - self._asked) / self._interval))
        self.agreed, slowest_ms = self._world.maxima([self.received, call_ms])
        # At most twice as many as before: the first calls after compilation or an evaluation say little.
        wanted = min(_MOST_CALLS, 2 * self._interval, round(1000 * _AGREE_S / slowest_ms))
        self._interval = self._left = max(1, wanted)
        self._asked = now

    def __enter__(self) -> StopSignal:
        """Install the handlers."""
        self._before = {s: signal.signal(s, self._note) for s in _STATUS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the previous handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            os.write(2, b"\ninterrupted again: leaving at once, without a checkpoint\n")
            os._exit(130)
        if self._world.is_main:
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\n{signal.Signals(number).name}: writing a checkpoint, then leaving\n".encode())
        self.received = number
