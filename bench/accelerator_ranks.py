"""Emulated accelerators in processes, one each, as the ranks of one training: every one has its own loader.

Loaders in threads of one process would share its interpreter lock and its allocator, which the ranks of a real training
do not. The ranks share the machine's cores as theirs do (`local_world_size`), and meet after every step.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from threading import BrokenBarrierError
from types import TracebackType
from typing import Any

from bench.accelerator import Sized, Timings, emulate, hold
from bench.long_epochs import LongEpochs
from loader import Loader, Transform
from shard.errors import FeedlineError

_LEAST_STEPS = 4  # that count
_PATIENCE_S = 300.0
_END_S = 10.0
_OTHERS = "another accelerator failed"
_Answer = tuple[str, Timings | None]  # what went wrong; what was measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeding:
    """The loaders that feed the accelerators; can be pickled.

    Attributes:
        dataset: with epochs as long as a measurement.
        split: name of the split.
        transform: augmentation.
        batch_size: images per batch of each accelerator.
        backend: of the loader.
        threads: decoding threads of each loader; None: its share of the cores.
        prefetch: batches that each loader prepares ahead. Not found out by the loader itself: it does that in its
            first 64 steps, which here are not those of one speed.
        blocking: see `bench.accelerator.emulate`.
    """

    dataset: LongEpochs
    split: str
    transform: Transform
    batch_size: int
    backend: str
    threads: int | None
    prefetch: int
    blocking: bool = False


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the ranks of a machine share.

    Attributes:
        number: of ranks.
        barrier: of all of them.
        last: number of the last step, -1 while it is not known.
        ready: see `_Meeting`; two times per rank.
    """

    number: int
    barrier: Any
    last: Any
    ready: Any


class Ranks:
    """Processes with a loader and an emulated accelerator each. A context manager.

    Args:
        feeding: what they load.
        number: of processes.

    Raises:
        FeedlineError: here or later, what a loader says.
    """

    def __init__(self, feeding: Feeding, number: int) -> None:
        context = multiprocessing.get_context("spawn")  # loaders have threads, which a fork would not survive
        # Kept here, too: the processes find these things by name while they start.
        self._shared = _Shared(
            number,
            context.Barrier(number),
            context.Value("q", -1),
            context.Array("d", 2 * number, lock=False),
        )
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, feeding, rank, self._shared), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, step_s: float, seconds: float, held: float | None = None) -> list[Timings]:
        """Let all accelerators compute for about `seconds`.

        Args:
            step_s: computing per batch; 0: take batches as fast as they come.
            seconds: of all steps together.
            held: images/s that each loader is held back to; None: it is not.
        """
        self._shared.last.value = -1
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # its answer will say why
                pipe.send((step_s, seconds, held))
        answers = self._answers()
        if failed := [text for text, _ in answers if text]:
            # Those that waited for the one that failed say only that.
            raise FeedlineError(next((text for text in failed if text != _OTHERS), _OTHERS))
        return [timings for _, timings in answers if timings is not None]

    def _answers(self) -> list[_Answer]:
        """Every rank's answer; after a failure those that there are, among them that of the one that failed first."""
        waiting, found = dict(enumerate(self._pipes)), dict[int, _Answer]()
        while waiting and not any(text not in ("", _OTHERS) for text, _ in found.values()):
            ready = wait(list(waiting.values()), _PATIENCE_S)
            if not ready:
                raise FeedlineError(f"accelerator {min(waiting)} did not answer for {_PATIENCE_S:.0f} s")
            for rank in [rank for rank, pipe in waiting.items() if pipe in ready]:
                found[rank] = self._answer(rank)
                del waiting[rank]
        return [found[rank] for rank in sorted(found)]

    def _answer(self, rank: int) -> _Answer:
        try:
            answer: _Answer = self._pipes[rank].recv()
        except (EOFError, ConnectionResetError):
            self._processes[rank].join(_END_S)
            code = self._processes[rank].exitcode
            return (
                f"the process of accelerator {rank} ended (status {code}); is there memory enough?",
                None,
            )
        return answer

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_END_S)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Ranks:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error the processes may be waiting for each other."""
        if error is not None:
            for process in self._processes:
                process.terminate()
        self.close()


def _serve(pipe: Connection, feeding: Feeding, rank: int, shared: _Shared) -> None:
    """Do as the other end of the pipe says until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes the pipe
    loader: Loader | None = None
    batches: Iterator[Sized] = iter(())
    while True:
        try:
            step_s, seconds, held = pipe.recv()
        except EOFError:
            break
        answer: _Answer
        try:
            if loader is None:
                loader = _loader(feeding, rank, shared.number)
                batches = _endless(loader)
            shared.barrier.wait(_PATIENCE_S)
            source = batches
            if held is not None:
                source = hold(batches, held, feeding.prefetch, time.perf_counter, time.sleep)
            timings = emulate(
                source, step_s, drain=feeding.prefetch + 1, meet=_Meeting(shared, rank, seconds),
                clock=time.perf_counter, sleep=time.sleep, blocking=feeding.blocking and step_s > 0,
            )  # fmt: skip
            answer = ("", timings)
        except BrokenBarrierError:
            answer = (_OTHERS, None)
        except Exception as error:  # noqa: BLE001  told to the parent, which raises it
            shared.barrier.abort()
            kind = "" if isinstance(error, FeedlineError) else f"{type(error).__name__}: "
            answer = (f"{kind}{error}", None)
        with suppress(BrokenPipeError):  # another rank failed, and the parent waits for nobody any more
            pipe.send(answer)
    if loader is not None:
        loader.close()


def _endless(loader: Loader) -> Iterator[Sized]:
    # `bench.stages` has this too, but would bring the training and all that it imports into every process.
    while True:
        yield from loader


def _loader(feeding: Feeding, rank: int, number: int) -> Loader:
    return Loader(
        feeding.dataset,
        feeding.split,
        feeding.transform,
        batch_size=feeding.batch_size,
        shuffle=True,
        drop_last=True,
        rank=rank,
        world_size=number,
        local_world_size=number,
        backend=feeding.backend,
        threads=feeding.threads,
        prefetch=feeding.prefetch,
    )


class _Meeting:
    """See `bench.accelerator.Meet`. Rank 0 decides which step is the last, before it meets the others for it."""

    def __init__(self, shared: _Shared, rank: int, seconds: float) -> None:
        self._shared, self._rank, self._seconds = shared, rank, seconds

    def __call__(self, step: int, ready: float, elapsed_s: float) -> tuple[float, bool]:
        shared = self._shared
        # Two sets of times in turn: a fast rank may write the next step's while a slow one still reads this one's.
        first = step % 2 * shared.number
        shared.ready[first + self._rank] = ready
        if self._rank == 0 and step >= _LEAST_STEPS and elapsed_s >= self._seconds:
            shared.last.value = step
        shared.barrier.wait(_PATIENCE_S)
        last: int = shared.last.value
        # Clocks of processes on one machine agree. Of `last` not merely whether it is set: rank 0 may be a step ahead.
        return max(shared.ready[first : first + shared.number]), last < 0 or step < last
