"""What goes to an experiment tracker goes there by a thread: neither its pace nor its failure is the training's."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Mapping
from typing import Literal, Protocol

Outcome = Literal["finished", "stopped", "failed"]  # stopped: by a signal, with a checkpoint


class Tracker(Protocol):
    """Takes numbers by name."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Note values of a step."""
        ...

    def close(self, outcome: Outcome = "finished") -> None:
        """Write out what is left, and how the run ended."""
        ...


_WAITING = 1000  # lines of metrics; then the tracker is given up
_CLOSE_S = 60.0  # to send what waits, at the end


class BackgroundTracker:
    """A tracker behind a queue and a thread. The first failure is shown, and nothing more is sent.

    Args:
        name: of the tracker, for the warning.
        tracker: who is told, by the thread.
        waiting: most lines that wait for it.
        close_s: how long `close` waits for it, seconds.
    """

    def __init__(
        self, name: str, tracker: Tracker, *, waiting: int = _WAITING, close_s: float = _CLOSE_S
    ) -> None:
        self._name, self._tracker, self._close_s = name, tracker, close_s
        self._queue: queue.Queue[tuple[Mapping[str, float], int]] = queue.Queue(waiting)
        self._outcome: Outcome | None = None
        self._given_up = threading.Event()
        # A daemon: a tracker that hangs must not keep the process.
        self._thread = threading.Thread(target=self._work, name=f"feedline-{name}", daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`; never waits, never raises."""
        if self._given_up.is_set():
            return
        try:
            self._queue.put_nowait((dict(values), step))
        except queue.Full:
            self._give_up(f"takes nothing any more: {self._queue.maxsize} lines of metrics wait for it")

    def close(self, outcome: Outcome = "finished") -> None:
        """Send what waits, for a minute at most, and end the thread."""
        self._outcome = outcome
        with contextlib.suppress(queue.Full):  # then the thread is awake anyway
            self._queue.put_nowait(({}, -1))
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            self._give_up(f"has not finished within {self._close_s:g} s")

    def _work(self) -> None:
        # What a tracker's library raises is its own; whatever it is, it is no reason to end a training.
        try:
            while not (self._outcome is not None and self._queue.empty()):
                values, step = self._queue.get()
                if values and not self._given_up.is_set():
                    self._tracker.log(values, step)
        except Exception as error:  # noqa: BLE001
            self._give_up(f"failed: {first_line(error)}")
        while self._outcome is None:
            self._queue.get()
        try:
            self._tracker.close(self._outcome)
        except Exception as error:  # noqa: BLE001
            self._give_up(f"failed at the end: {first_line(error)}")

    def _give_up(self, why: str) -> None:
        if not self._given_up.is_set():
            self._given_up.set()
            print(
                f"warning: tracker {self._name} {why}; it gets nothing more, metrics.jsonl has everything",
                file=sys.stderr,
            )


def first_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
