"""The torch backend: threads over libjpeg-turbo and torch's uint8 antialiased resize.

Runs everywhere, is the faster one on a CPU, and is the oracle the DALI backend is tested against.
Both libraries release the GIL, so plain threads scale over cores with nothing pickled or copied.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, wait
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from loader import cpu_ops, narrow
from loader.affinity import Cores, pinned
from loader.backend import Decoded, Pending
from loader.jpeg import Decoder, Image
from loader.params import Params
from loader.reader import Encoded
from loader.threads import ThreadPool
from shard.errors import FeedlineError

# Several images a task keep the executor's overhead away; several tasks a thread keep threads evenly busy.
_TASKS_PER_THREAD = 4
_IDLE_BUFFERS = 8  # of other sizes, for resolutions that change to and fro
_PATIENCE_S = 30.0  # with threads that decode, when they are to end; a task takes a fraction of a second


class TorchBackend:
    """See `loader.backend.Backend`."""

    def __init__(
        self, device: torch.device, threads: int, timeout_s: float = 300.0, cores: Cores | None = None
    ) -> None:
        self._device = device
        self._timeout_s = timeout_s
        self._threads = threads
        self._local = threading.local()
        self._ring: list[Image] = []
        self._ring_lock = threading.Lock()  # batches may be submitted from several threads
        self._copies = (
            torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        )
        with pinned(cores):
            self._pool = ThreadPool(threads, "feedline-decode", _PATIENCE_S)
            _start_single_threaded(self._pool, threads)

    def submit(self, encoded: list[Encoded], params: Params, rows: int) -> Pending:
        """See `Backend.submit`."""
        shape = (rows, params.size, params.size, 3)
        if self._device.type == "cuda":
            # torch's own cache of pinned buffers, which gives none out again before its copy is done
            out = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:
            out = torch.from_numpy(self._buffer(shape))
        batch: Image = out.numpy()
        batch[len(encoded) :] = 0
        step = max(1, -(-len(encoded) // (self._threads * _TASKS_PER_THREAD)))
        tasks = [
            self._pool.submit(
                self._run, encoded, params, batch, range(first, min(first + step, len(encoded)))
            )
            for first in range(0, len(encoded), step)
        ]

        def result() -> Decoded:
            bad = _wait(tasks, self._timeout_s)
            return Decoded(self._to_device(out), bad)

        return result

    def _to_device(self, batch: torch.Tensor) -> torch.Tensor:
        """Copy to the GPU beside its computation, of which the step before is still in the queue."""
        if self._copies is None:
            return batch
        with torch.cuda.stream(self._copies):
            copy = batch.to(self._device, non_blocking=True)
        now = torch.cuda.current_stream(self._device)
        now.wait_stream(self._copies)
        copy.record_stream(now)
        return copy

    def close(self) -> None:
        """See `Backend.close`."""
        self._pool.close()
        self._ring.clear()

    def _buffer(self, shape: tuple[int, ...]) -> Image:
        """Return a batch buffer that nobody looks at any more, else a new one.

        Fresh memory costs 0.2 ms of page faults per ImageNet image. A tensor made from an array keeps a
        reference to it, so the count tells whether the batch, or any view of it, is still in use.
        """
        idle = []
        with self._ring_lock:
            for number, buffer in enumerate(self._ring):
                if sys.getrefcount(buffer) == _IDLE_REFERENCES:
                    if buffer.shape == shape:
                        return buffer
                    idle.append(number)
            for number in reversed(idle[: len(idle) - _IDLE_BUFFERS]):
                del self._ring[number]
            fresh = np.empty(shape, np.uint8)
            self._ring.append(fresh)
            return fresh

    def _run(self, encoded: list[Encoded], params: Params, batch: Image, rows: range) -> dict[int, str]:
        bad: dict[int, str] = {}
        decoder: Decoder | None = getattr(self._local, "decoder", None)
        if decoder is None:
            decoder = self._local.decoder = Decoder()
        too_long = narrow.too_long(params)
        for row in rows:
            try:
                decode = partial(decoder.window, encoded[row])
                if too_long[row]:
                    window = torch.from_numpy(narrow.cut(decode, params, row))
                else:
                    window = _resized(decode(*params.window[row].tolist()), params, row)
            except ValueError as error:  # noqa: PERF203  (costs nothing since Python 3.11)
                bad[row] = str(error)
                batch[row] = 0
            else:
                _finish(window, params, row, batch[row])
        return bad


def _idle_references() -> int:
    """Count what `_buffer` counts for a buffer that only the ring holds; Python versions differ in it."""
    ring = [np.empty(0, np.uint8)]
    references = 0
    for _, buffer in enumerate(ring):  # the same kind of loop as in `_buffer`
        references = sys.getrefcount(buffer)
    return references


_IDLE_REFERENCES = _idle_references()


def _resized(pixels: Image, params: Params, row: int) -> torch.Tensor:
    """Resize and shift the decoded window [h, w, 3] of one row: uint8 [size, size, 3]."""
    # torch's fast uint8 resize wants dense channels-last strides, in the batch dimension too: a strided
    # view, or a batch dimension added after the permutation, takes twice the time.
    window = torch.from_numpy(np.ascontiguousarray(pixels))
    resized = params.resized[row].tolist()
    if list(window.shape[:2]) != resized:
        nchw = F.interpolate(
            window[None].permute(0, 3, 1, 2), size=resized, mode=params.interpolation, antialias=True
        )
        window = nchw[0].permute(1, 2, 0)
    return _shift(window, params.offset[row].tolist(), params.size) if params.shifted else window


def _finish(window: torch.Tensor, params: Params, row: int, out: Image) -> None:
    """Flip a window [size, size, 3], apply the operations of its row, and write `out` [size, size, 3]."""
    # torch's flip is 20 times faster than a numpy copy with a negative stride
    torch.from_numpy(out).copy_(window.flip(1) if params.flip[row] else window)
    if params.ops is not None:
        cpu_ops.apply(out, params.ops.op[row].tolist(), params.ops.arg[row].tolist())
    if params.erase is not None:
        params.erase.paint(row, torch.from_numpy(out))


def _shift(image: torch.Tensor, offset: list[int], size: int) -> torch.Tensor:
    """Cut [size, size, 3] out of `image` [h, w, 3] at (top, left) = `offset`; black where it lies outside."""
    (top, left), (height, width) = offset, image.shape[:2]
    bottom, right = top + size, left + size
    inside = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    return F.pad(inside, (0, 0, max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0)))


def _wait(tasks: list[Future[dict[int, str]]], timeout_s: float) -> dict[int, str]:
    """Wait for every task, so that none still writes when an error is raised; reasons by row of bad images."""
    _, late = wait(tasks, timeout_s)
    if late:
        raise FeedlineError(
            f"decoding a batch took longer than timeout_s ({timeout_s:.0f} s): the storage hangs, or the machine is "
            "overloaded"
        )
    return {row: reason for task in tasks for row, reason in task.result().items()}


def _start_single_threaded(pool: ThreadPool, threads: int) -> None:
    """Start the pool's threads with one intra-op thread each.

    `torch.set_num_threads` holds for the calling thread, and as the default of threads started later.
    So the caller's number is put back once all of the pool's have started.
    """
    before = torch.get_num_threads()
    barrier = threading.Barrier(threads)

    def start() -> None:
        torch.set_num_threads(1)
        barrier.wait()

    for task in [pool.submit(start) for _ in range(threads)]:
        task.result()
    torch.set_num_threads(before)
