"""Which ranks are alive: heartbeats through the store that the ranks met in, and a word on who is missing.

A rank that dies on a machine of its own leaves the others waiting in a collective, and what they report after the
time-out names themselves. So every rank writes a heartbeat with its progress into the store, from a thread that lives
as long as the process does, and looks at the others'.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

INTERVAL_S = 0.5
_LOOK_EVERY = 4  # beats between two looks at the others
# Where the network breaks and no connection closes, a call of torch's store never returns: not even after its time-out,
# when it waits for the server to confirm that it has given up (torch 2.14). No rank waits for one for longer.
ANSWER_S = 5.0
EXIT_LOST = 1
STORE_GONE = "its torchrun, its machine or the network between is gone"


class Store(Protocol):
    """The part of `torch.distributed.Store` that is needed."""

    def set(self, key: str, value: str) -> None:
        """Set a value."""
        ...

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Values of keys; waits for those that are not there yet."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether all these keys are there."""
        ...


class _RunningClock:
    """Seconds that this process has run. Does not count what it was stopped for: Ctrl-Z, `scontrol suspend`.

    Args:
        most_s: what counts at most between two readings.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s, self._ran, self._last, self._lock = most_s, 0.0, time.monotonic(), threading.Lock()

    def __call__(self) -> float:
        """Return the seconds so far."""
        with self._lock:
            now = time.monotonic()
            self._ran += min(now - self._last, self._most_s)
            self._last = now
            return self._ran


@dataclass(slots=True)
class _Seen:
    """What was last seen of a rank, and when by this process's clock."""

    text: str
    at: float


class Peers:
    """Heartbeats of this rank, and what is known of the others. A context manager, entered by all ranks together.

    Args:
        store: where the heartbeats go; a connection of its own, since a thread uses it.
        rank: this process's number.
        size: number of processes.
        lost_after_s: silence after which a rank counts as lost, and this process ends itself: it may be waiting in a
            collective that nobody will ever join.
        leave: ends the process.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        lost_after_s: float,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self.step = 0
        self._store, self._rank, self._size, self._lost_after_s, self._leave = (
            store, rank, size, lost_after_s, leave,
        )  # fmt: skip
        self._beats = 0
        self._seen: dict[int, _Seen] = {}
        self._clock = _RunningClock(max(lost_after_s / 4, INTERVAL_S))
        self._answered = self._clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feedline-heartbeat", daemon=True)
        self._watch = threading.Thread(target=self._watch_store, name="feedline-store", daemon=True)

    def beat(self, state: str = "at") -> None:
        """Write this rank's heartbeat."""
        self._beats += 1
        where = f"{socket.gethostname()} {os.getpid()}"
        self._store.set(f"beat/{self._rank}", f"{self._beats} {self.step} {where} {state}")

    def look(self) -> None:
        """Read everyone's heartbeat."""
        others = [r for r in range(self._size) if r != self._rank]
        values = self._store.multi_get([f"beat/{r}" for r in others])
        self._answered = now = self._clock()
        for rank, value in zip(others, values, strict=True):
            text = value.decode()
            if rank not in self._seen or self._seen[rank].text != text:
                self._seen[rank] = _Seen(text, now)

    def missing(self, silent_s: float) -> list[str]:
        """Describe the ranks that failed, or have been silent for `silent_s`; one that is done is not missing."""
        now, found = self._clock(), []
        for rank, seen in sorted(self._seen.items()):
            _, step, host, process, state = seen.text.split(" ", 4)
            who = f"rank {rank} (host {host}, process {process})"
            if state.startswith("failed"):
                found.append(f"{who} at step {step}: {state}")
            elif state == "at" and now - seen.at >= silent_s:
                found.append(f"{who} has been silent for {now - seen.at:.0f} s, since step {step}")
        return found

    def behind(self) -> str:
        """Describe who has come least far, for when all are alive and yet wait for each other."""
        steps = {self._rank: self.step} | {r: int(s.text.split(" ")[1]) for r, s in self._seen.items()}
        least = min(steps.values())
        slow = [str(r) for r, step in sorted(steps.items()) if step == least]
        if least == max(steps.values()):
            return f"all ranks are alive, at step {least}"
        return f"all ranks are alive; rank {', '.join(slow)} hangs at step {least}, others are at {max(steps.values())}"

    def explain(self) -> str:
        """Find out who is missing, after a collective has failed; takes about two seconds."""
        try:
            deadline = time.monotonic() + 3 * INTERVAL_S
            self.look()
            while time.monotonic() < deadline:
                time.sleep(INTERVAL_S / 2)
                self.look()
            # Those who live have beaten about three times in this time.
            found = self.missing(2 * INTERVAL_S)
        except (RuntimeError, OSError) as error:  # the store went with rank 0's machine, or with torchrun
            return store_lost(error)
        return "; ".join(found) if found else self.behind()

    def __enter__(self) -> Peers:
        """Beat once and start the threads."""
        self.beat()
        self._answered = self._clock()
        self._thread.start()
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the others why this rank leaves."""
        self._ended.set()
        self._watch.join()
        self._thread.join(ANSWER_S)
        if self._thread.is_alive():  # the store does not answer: nobody can be told
            return
        orderly = error is None or getattr(error, "orderly", False)
        state = "done" if orderly or error is None else f"failed: {_first_line(error)}"
        try:
            self.beat(state)
        except (RuntimeError, OSError):  # nobody is left to tell
            return

    def _run(self) -> None:
        beats = 0
        while not self._ended.wait(INTERVAL_S):
            beats += 1
            try:
                self.beat()
                if beats % _LOOK_EVERY:
                    continue
                self.look()
            except (RuntimeError, OSError) as error:
                if not self._ended.is_set():
                    self._end(store_lost(error))
                return
            if found := self.missing(self._lost_after_s):
                self._end("lost " + "; ".join(found))
                return

    def _watch_store(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            silent_s = self._clock() - self._answered
            # It is asked every fourth beat only: a shorter --lost-after-s would take the time between for silence.
            if silent_s >= max(self._lost_after_s, 2 * _LOOK_EVERY * INTERVAL_S):
                self._end(f"the store of the run has not answered for {silent_s:.0f} s: {STORE_GONE}")
                return

    def _end(self, message: str) -> None:
        """End the process, whose main thread may never return from a collective."""
        time.sleep(2 * INTERVAL_S)  # where the main thread has noticed as well, it says more
        if self._ended.is_set():
            return
        print(f"[rank {self._rank}] error: {message}", file=sys.stderr, flush=True)
        self._leave(EXIT_LOST)


def store_lost(error: BaseException) -> str:
    """Say that a call of the store failed."""
    return f"the store of the run does not answer ({_first_line(error)}): {STORE_GONE}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
