"""The work in flight of one iteration: batches being read, then being decoded, in the order of the epoch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from loader.backend import Backend, Pending
from loader.counters import Counters, Tracer
from loader.order import Ids
from loader.params import Params
from loader.reader import Encoded, PendingRead, Reads


class Request(NamedTuple):
    """One batch of this rank: sample ids [n] and what happens to them."""

    ids: Ids
    params: Params


class Fed(NamedTuple):
    """A finished batch.

    Attributes:
        ids: samples of its first rows.
        params: what was done to them.
        images: uint8 [rows, size, size, 3].
        bad: reason by row, of samples that could not be read or decoded; their pixels are black or another's.
    """

    ids: Ids
    params: Params
    images: torch.Tensor
    bad: dict[int, str]


class _Decoding(NamedTuple):
    ids: Ids
    params: Params
    pending: Pending
    bad: dict[int, str]


class Feed:
    """Keeps up to `prefetch` batches in decoding and some more in reading.

    Args:
        request: gives the batch of a step.
        steps: how many there are.
        rows: of every batch.
        reads: reads bytes.
        backend: decodes them.
        available: whether the shards of samples are on this machine, so that reading them does not wait.
        timeout_s: for one batch's bytes.
        counters: to count in.
        tracer: to record in.
        known_bad: reasons by row, of samples that are known not to decode.
    """

    def __init__(
        self,
        request: Callable[[int], Request],
        steps: int,
        rows: int,
        reads: Reads,
        backend: Backend,
        available: Callable[[Ids], bool],
        timeout_s: float,
        counters: Counters,
        tracer: Tracer,
        known_bad: Callable[[Ids], dict[int, str]] = lambda ids: {},
    ) -> None:
        self._request, self._steps, self._rows = request, steps, rows
        self._reads, self._backend, self._available = reads, backend, available
        self._timeout_s, self._counters, self._tracer = timeout_s, counters, tracer
        self._known_bad = known_bad
        self._reading: deque[tuple[Request, PendingRead]] = deque()
        self._decoding: deque[_Decoding] = deque()
        self._next_read = 0
        self._waiting: Request | None = None  # drawn, but its shards are not here yet

    @property
    def busy(self) -> bool:
        """Whether anything is in flight."""
        return bool(self._reading or self._decoding)

    def take(self, step: int, prefetch: int, read_ahead: int) -> Fed:
        """Wait for the batch of `step`; steps come in their order.

        Args:
            step: of this iteration.
            prefetch: batches that are being decoded, this one included.
            read_ahead: more batches whose bytes are asked for.
        """
        last = min(self._steps, step + prefetch)
        while True:
            self._read_up_to(min(self._steps, last + read_ahead), needed=step)
            self._decode_up_to(last - step)
            if self._decoding:
                break
        with self._tracer.span("wait for pixels", step=step):
            began = time.perf_counter()
            self._counters.queue = len(self._decoding)
            ids, params, pending, bad = self._decoding[0]
            decoded = pending()
            self._decoding.popleft()  # not before: an interrupt would leave the backend a batch ahead of us
            self._counters.decode_wait_s += time.perf_counter() - began
        return Fed(ids, params, decoded.images, decoded.bad | bad)

    def _read_up_to(self, end: int, needed: int) -> None:
        while self._next_read < end:
            request = self._waiting or self._request(self._next_read)
            # The batch that is needed now is worth waiting for its shards, those ahead are not.
            if self._next_read > needed and not self._available(request.ids):
                self._waiting = request
                return
            self._waiting = None
            with self._tracer.span("start reading", step=self._next_read):
                self._reading.append((request, self._reads.start(request.ids)))
            self._next_read += 1

    def _decode_up_to(self, depth: int) -> None:
        while self._reading and len(self._decoding) < depth:
            (ids, params), read = self._reading[0]
            if self._decoding and not read.ready():
                return
            with self._tracer.span("wait for bytes", samples=len(ids)):
                began = time.perf_counter()
                wrong = read.wait(self._timeout_s) | self._known_bad(ids)
                self._counters.read_wait_s += time.perf_counter() - began
            self._reading.popleft()
            self._counters.bytes_read += sum(len(one) for one in read.encoded)
            pending = self._submit(read.encoded, params, wrong)
            self._decoding.append(_Decoding(ids, params, pending, wrong))

    def _submit(self, encoded: list[Encoded], params: Params, wrong: dict[int, str]) -> Pending:
        if wrong:
            # A good sample takes the place of a bad one, so that the rows of all others stay where they are.
            rows = np.arange(len(encoded))
            good = np.setdiff1d(rows, list(wrong))
            rows[list(wrong)] = good[0] if len(good) else 0
            rows = rows[: len(rows) if len(good) else 0]
            encoded, params = [encoded[i] for i in rows], params.take(rows)
        return self._backend.submit(encoded, params, self._rows)
