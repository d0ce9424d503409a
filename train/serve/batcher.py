"""Dynamic batching: items are prepared in threads, and one more thread runs those that are ready together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from loader.threads import ThreadPool
from train.serve.refused import RefusedError

_PATIENCE_S = 30.0  # with threads, when they are to end


class Closing(Protocol):
    """Something that holds what it has to let go of."""

    def close(self) -> None:
        """Let go."""


Given = TypeVar("Given", bound=Closing)
Ready = TypeVar("Ready")
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Item(Generic[Ready, Answer]):
    ready: Ready
    answer: Future[Answer]
    since_s: float = field(default_factory=time.monotonic)


class Batcher(Generic[Given, Ready, Answer]):
    """Runs items in batches. A batch starts when it is full, when its first item has waited for `max_wait_s`, or when
    nothing else is being prepared: a lone request does not wait.

    Args:
        prepare: what a thread does with an item, which is closed then, as it is when nobody waits for it any more.
        run: computes the answers of a batch.
        threads: that prepare.
        max_batch: items a batch.
        max_wait_s: longest time that a prepared item waits for others.
        limit: items that are in here at a time.

    Attributes:
        running_since: when the present batch began, by `time.monotonic`; None between batches.
        failed: how many batches in a row have failed, up to the latest.
    """

    def __init__(
        self,
        prepare: Callable[[Given], Ready],
        run: Callable[[Sequence[Ready]], Sequence[Answer]],
        *,
        threads: int,
        max_batch: int,
        max_wait_s: float,
        limit: int,
    ) -> None:
        self._prepare, self._run = prepare, run
        self._max_batch, self._max_wait_s, self._limit = max_batch, max_wait_s, limit
        self._ready: deque[_Item[Ready, Answer]] = deque()
        self._inside = self._preparing = 0
        self._closing = False
        self._changed = threading.Condition()
        self.running_since: float | None = None
        self.failed = 0
        self._pool = ThreadPool(threads, "feedline-serve-decode", _PATIENCE_S)
        self._thread = threading.Thread(target=self._loop, name="feedline-serve-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items that are in here: being prepared, ready, or in the present batch."""
        return self._inside

    @property
    def decoding(self) -> int:
        """Items that are being prepared."""
        return self._preparing

    @property
    def alive(self) -> bool:
        """Whether the thread that runs batches is there."""
        return self._thread.is_alive()

    def submit(self, given: Given) -> Future[Answer]:
        """Take an item in. Cancelling what is returned takes it out, unless its batch has begun.

        Raises:
            RefusedError: full, or closed; the item is not taken.
        """
        with self._changed:
            self.require_room()
            self._inside += 1
            self._preparing += 1
        answer: Future[Answer] = Future()
        self._pool.submit(self._make_ready, given, answer)
        return answer

    def require_room(self) -> None:
        """Look whether an item would be taken now.

        Raises:
            RefusedError: it would not.
        """
        if self._closing:
            raise RefusedError(503, "the server is stopping")
        if self._inside >= self._limit:
            raise RefusedError(503, f"{self._limit} images are waiting already; try again later")

    def close(self) -> None:
        """Answer what is in here, and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_PATIENCE_S)  # it is a daemon: one that hangs does not keep the process
        self._pool.close()

    def _make_ready(self, given: Given, answer: Future[Answer]) -> None:
        item: _Item[Ready, Answer] | None = None
        try:
            if not answer.cancelled():
                item = _Item(self._prepare(given), answer)
        except Exception as error:  # noqa: BLE001  (handed to whoever asks for the answer)
            if answer.set_running_or_notify_cancel():
                answer.set_exception(error)
        finally:
            given.close()
        with self._changed:
            self._preparing -= 1
            if item is None:
                self._inside -= 1
            else:
                self._ready.append(item)
            self._changed.notify_all()

    def _loop(self) -> None:
        while batch := self._collect():
            # From here on an answer cannot be cancelled.
            wanted = [item for item in batch if item.answer.set_running_or_notify_cancel()]
            if wanted:
                self.running_since = time.monotonic()
                self._answer(wanted)
                self.running_since = None
            with self._changed:
                self._inside -= len(batch)
                self._changed.notify_all()
            del batch, wanted  # or the last images would be kept for as long as nothing comes

    def _collect(self) -> list[_Item[Ready, Answer]]:
        """Wait for the next batch; empty at the end."""
        with self._changed:
            while not self._ready:
                if self._closing and not self._inside:
                    return []
                self._changed.wait()
            end = self._ready[0].since_s + self._max_wait_s
            while len(self._ready) < self._max_batch and self._preparing:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return [self._ready.popleft() for _ in range(min(self._max_batch, len(self._ready)))]

    def _answer(self, batch: list[_Item[Ready, Answer]]) -> None:
        try:
            answers = self._run([item.ready for item in batch])
        except Exception as error:  # noqa: BLE001  (handed to those who ask for the answers)
            self.failed += 1
            for item in batch:
                item.answer.set_exception(error)
        else:
            self.failed = 0
            for item, answer in zip(batch, answers, strict=True):
                item.answer.set_result(answer)
