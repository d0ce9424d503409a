"""The stages that `python -m bench doctor` takes a training apart into; see `bench.measure.Stage`.

Decoding and augmenting work on images that are already in memory, so that the storage has no part in them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.samples import Sample
from bench.stages import endless_batches, synchronize, train_on
from loader import Loader, Transform
from loader.affinity import rank_cores
from loader.backend import Pending
from loader.jpeg import Decoder
from loader.order import Ids
from loader.resolve import make_backend
from train.step import TrainStep

Copy = Callable[[torch.Tensor], torch.Tensor]
_IN_WORK = 2  # batches in decoding


class Windows:
    """The decode ceiling: libjpeg-turbo alone with all threads, of each image the window that the crop needs."""

    name, title, lead_in = "windows", "decode ceiling, no resize", 1

    def __init__(self, sample: Sample, transform: Transform, batch_size: int, threads: int) -> None:
        self._sample, self._transform, self._threads = sample, transform, threads
        self._turns = turns(len(sample.ids), batch_size)
        self._pool, self._local = ThreadPoolExecutor(threads), threading.local()

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        epoch, rows = next(self._turns)
        split, ids = self._sample.split, self._sample.ids[rows]
        windows = self._transform.params(0, epoch, ids, split.width[ids], split.height[ids]).window
        list(self._pool.map(lambda part: self._decode(rows[part], windows[part]), self._parts(len(rows))))
        return len(rows), sum(len(self._sample.encoded[i]) for i in rows)

    def _parts(self, count: int) -> list[Ids]:
        return np.array_split(np.arange(count), min(count, self._threads * 4))

    def _decode(self, rows: Ids, windows: npt.NDArray[np.integer[Any]]) -> None:
        if not hasattr(self._local, "decoder"):
            self._local.decoder = Decoder()
        for row, window in zip(rows.tolist(), windows.tolist(), strict=True):
            self._local.decoder.window(self._sample.encoded[row], *window)

    def synchronize(self) -> None:
        """Every step ends with its work done."""

    def close(self) -> None:
        """See `Stage.close`."""
        self._pool.shutdown()


class Prepare:
    """The loader without its reader: a backend decodes, resizes and augments images in memory."""

    lead_in = _IN_WORK

    def __init__(
        self, name: str, title: str, sample: Sample, transform: Transform, *, batch_size: int, threads: int,
        backend: str, device: torch.device,
    ) -> None:  # fmt: skip
        self.name, self.title = name, title
        self._sample, self._transform, self._batch_size = sample, transform, batch_size
        self._device = device
        self._turns = turns(len(sample.ids), batch_size)
        self._backend = make_backend(backend, device, threads, batch_size, cores=rank_cores(device, 0, 1))
        self._work: deque[Pending] = deque(self._submit() for _ in range(_IN_WORK))

    def _submit(self) -> Pending:
        epoch, rows = next(self._turns)
        split, ids = self._sample.split, self._sample.ids[rows]
        params = self._transform.params(0, epoch, ids, split.width[ids], split.height[ids])
        return self._backend.submit([self._sample.encoded[i] for i in rows], params, self._batch_size)

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        self._work.append(self._submit())
        self._work.popleft()()
        return self._batch_size, 0

    def synchronize(self) -> None:
        """Wait for the GPU, where batches are made there."""
        synchronize(self._device)

    def close(self) -> None:
        """See `Stage.close`."""
        while self._work:
            self._work.popleft()()
        self._backend.close()


class HostToDevice:
    """Copies of what one batch sends over: its pixels, or its encoded bytes where the device decodes."""

    name, title, lead_in = "copy", "host to device", 1

    def __init__(self, payload: torch.Tensor, images: int, copy: Copy, device: torch.device) -> None:
        self._payload, self._images, self._copy, self._device = payload, images, copy, device

    def step(self) -> tuple[int, int]:
        """See `Stage.step`; each copy is waited for, or the queue would grow without end."""
        self._copy(self._payload)
        synchronize(self._device)
        return self._images, self._payload.numel()

    def synchronize(self) -> None:
        """Every step ends with its work done."""

    def close(self) -> None:
        """Nothing to free."""


class Train:
    """Training steps fed by the loader, and what they waited for.

    Args:
        name: short identifier.
        title: for people.
        train_step: perhaps shared with other stages.
        loader: closed with the stage.
        copy: between loader and step, where the loader does not give batches on the device.
        begin: called before every epoch, such as `page_cache.evict`.
        every: batches after which it is called within an epoch, too: one pass of a dataset that is repeated.
    """

    lead_in = 6  # uses up what was prefetched while waiting

    def __init__(
        self, name: str, title: str, train_step: TrainStep, loader: Loader, copy: Copy | None = None,
        begin: Callable[[], None] = lambda: None, every: int | None = None,
    ) -> None:  # fmt: skip
        self.name, self.title = name, title
        self._train_step, self.loader, self._copy = train_step, loader, copy
        self._batches = endless_batches(loader, begin, every)
        self._marks: list[tuple[float, float, float]] = []

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        batch = next(self._batches)
        if self._copy is not None:
            batch = replace(batch, images=self._copy(batch.images))
        return train_on(self._train_step, batch), 0

    @property
    def waits(self) -> list[tuple[float, float]]:
        """Shares of the time, 0 … 1, that the loader and that bytes were waited for, shards of a store included.

        One pair for each measurement, the warm-up first; lead-ins left out.
        """
        return [
            ((waited - waited_before) / (end - began), (read - read_before) / (end - began))
            for (began, waited_before, read_before), (end, waited, read) in zip(
                self._marks[::2], self._marks[1::2], strict=True
            )
        ]

    def synchronize(self) -> None:
        """Wait for the GPU; `bench.measure` does that where a measurement begins and where it ends."""
        synchronize(self._train_step.world.device)
        counters = self.loader.counters
        self._marks.append(
            (time.perf_counter(), counters.wait_s, counters.read_wait_s + counters.fetch_wait_s)
        )

    def close(self) -> None:
        """See `Stage.close`."""
        self.loader.close()


def device_copy(device: torch.device) -> Copy | None:
    """How a batch gets to the device; None where it is there already (on a CPU)."""
    if device.type == "cpu":
        return None
    return lambda images: images.to(device, non_blocking=True)


def turns(count: int, batch_size: int) -> Iterator[tuple[int, Ids]]:
    """Epoch and rows [batch_size] out of `count`, round and round."""
    first = 0
    while True:
        rows = np.arange(first, first + batch_size)
        yield first // count, rows % count
        first += batch_size
