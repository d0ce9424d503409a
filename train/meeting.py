"""How ranks meet in torchrun's store, and what those that came say when the others do not."""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType

from train.peers import ANSWER_S, EXIT_LOST, STORE_GONE, Store, store_lost

_POLL_S = 0.02


def meet(store: Store, rank: int, size: int) -> str:
    """Agree with the other ranks on a name that no earlier attempt has used; returns when all have it.

    torchrun keeps one store over its restarts (torch 2.14), with all that dead ranks have left in it: gloo would take
    their addresses for those of the living, and be refused or wait for good. So each rank asks under a name of its
    own, new in every process, and rank 0 answers whoever asks until all have confirmed.

    Args:
        store: as of `Peers`.
        rank: this process's number.
        size: number of processes.
    """
    mine = uuid.uuid4().hex
    if rank != 0:
        store.set(f"ask/{rank}", mine)
        _wait_for(store, [f"answer/{mine}"])
        name = store.multi_get([f"answer/{mine}"])[0].decode()
        store.set(f"met/{name}/{rank}", "")
        return name
    others = range(1, size)
    while not store.check([f"met/{mine}/{r}" for r in others]):
        for r in others:
            if store.check([f"ask/{r}"]):  # it may be an earlier attempt's: then nobody reads the answer
                store.set(f"answer/{store.multi_get([f'ask/{r}'])[0].decode()}", mine)
        time.sleep(_POLL_S)
    return mine


def _wait_for(store: Store, keys: list[str]) -> None:
    while not store.check(keys):
        time.sleep(_POLL_S)


class Joining:
    """Ends the process if the ranks have not met in time; entered by each before it meets the others.

    Args:
        store: as of `Peers`.
        rank: this process's number.
        size: number of processes.
        limit_s: time from here to the end of the `with` block.
        leave: ends the process.
    """

    def __init__(
        self, store: Store, rank: int, size: int, limit_s: float, leave: Callable[[int], object] = os._exit
    ) -> None:
        self._store, self._rank, self._size, self._limit_s, self._leave = store, rank, size, limit_s, leave
        self._here = f"here/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._timer = threading.Timer(limit_s, self._end)
        self._timer.daemon = True

    def __enter__(self) -> None:
        """Say that this rank is here, and start the clock."""
        self._store.set(f"{self._here}/{self._rank}", "")
        self._timer.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the clock."""
        self._timer.cancel()

    def _absent(self) -> str:
        try:
            absent = [r for r in range(self._size) if not self._store.check([f"{self._here}/{r}"])]
        except (RuntimeError, OSError) as error:  # its connection is closed
            return store_lost(error)
        if absent:
            return f"rank {', '.join(map(str, absent))} of {self._size} has not come"
        return f"all {self._size} are there, but do not connect"

    def _end(self) -> None:
        reason = _answer(self._absent) or f"the store of the run does not answer: {STORE_GONE}"
        message = f"the ranks have not met within {self._limit_s:g} s (--join-timeout-s): {reason}"
        print(f"[rank {self._rank}] error: {message}", file=sys.stderr, flush=True)
        self._leave(EXIT_LOST)


def _answer(ask: Callable[[], str]) -> str:
    """Ask the store; empty if it does not answer in time."""
    answer: list[str] = []
    thread = threading.Thread(target=lambda: answer.append(ask()), daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return answer[0] if answer else ""
