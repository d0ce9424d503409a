"""SIGTERM and Ctrl-C: all ranks agree on the step after which the run is saved and left."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from train.distributed import World

_EVERY = 10  # steps between two agreements of several ranks: each makes the fastest wait for the slowest


class Stopped(Exception):
    """The run was stopped by a signal after its checkpoint was written. Raised on every rank.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class StopSignal:
    """Catches SIGTERM and SIGINT while it is entered; a second SIGINT leaves at once.

    Attributes:
        received: number of the signal that this process got, 0 if none.
        agreed: number of the signal that the ranks have agreed on, 0 if none.
    """

    def __init__(self, world: World) -> None:
        self.received = self.agreed = 0
        self._world = world
        self._before: dict[int, Any] = {}

    def due(self, step: int) -> bool:
        """Whether all ranks stop after this step. Collective; alone it asks every step, else every tenth."""
        if not self.agreed and (self._world.size == 1 or step % _EVERY == 0):
            self.agreed = self._world.max(self.received)
        return self.agreed != 0

    def __enter__(self) -> StopSignal:
        """Install the handlers."""
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
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
