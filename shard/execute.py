"""Run independent jobs on this machine's processes or on a Dask cluster, through one interface."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from shard.errors import FeedlineError

Job = TypeVar("Job")
Tag = TypeVar("Tag")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Workers:
    """Where jobs run.

    Attributes:
        executor: any of the standard interface; its errors reach the caller.
        count: jobs it works on at a time.
    """

    executor: Executor
    count: int

    def unordered(
        self, function: Callable[[Job], Result], jobs: Iterable[tuple[Tag, Callable[[], Job]]]
    ) -> Iterator[tuple[Tag, Result]]:
        """Run `function` on jobs, and give each one's tag and result as they come.

        A job is made only when there is room for it: the list of all may be larger than memory. When one
        fails, or the caller stops, those under way are finished and the others dropped.
        """
        waiting = iter(jobs)
        under_way: dict[Future[Result], Tag] = {}
        try:
            while True:
                while len(under_way) < 2 * self.count and (entry := next(waiting, None)) is not None:
                    under_way[self.executor.submit(function, entry[1]())] = entry[0]
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(future), future.result()
        finally:
            for future in under_way:
                future.cancel()

    def ordered(self, function: Callable[..., Result], *columns: Iterable[Any]) -> Iterator[Result]:
        """Run `function` on rows of arguments, and give the results in order."""
        return self.executor.map(function, *columns)


@contextmanager
def start_workers(count: int | None = None, scheduler: str | None = None) -> Iterator[Workers]:
    """Start workers, and stop them at the end.

    Args:
        count: processes; None: one more than cores, so that cores work while a shard is flushed; 1: in this process.
        scheduler: address of a Dask scheduler; its workers are used instead.

    Raises:
        FeedlineError: a count below 1, no cluster at the address, or workers that died.
    """
    if scheduler is not None:
        with _dask(scheduler) as found:
            yield found
        return
    count = (os.cpu_count() or 1) + 1 if count is None else count
    if count < 1:
        raise FeedlineError(f"workers is {count}; it must be at least 1")
    if count == 1:
        yield Workers(_Here(), 1)
        return
    # Fresh interpreters: a fork of a process with threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = _Pool(count, mp_context=context, initializer=_start_worker)
    try:
        yield Workers(pool, count)
    except BrokenProcessPool as error:
        raise FeedlineError(
            "a worker process died (killed, or out of memory); finished work is kept: run the same command "
            "again, perhaps with fewer --workers (a script must call this below `if __name__ == '__main__':`)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Pool(ProcessPoolExecutor):
    """Starts processes when a job comes, with Ctrl-C blocked: one that still imports cannot ignore it yet."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # children inherit it
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Here(Executor):
    """Runs a job when it is submitted."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        future: Future[Result] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  raised again where the result is asked for
            future.set_exception(error)
        return future


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a worker without a parent process")

    def end_with_parent(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, args=(parent.sentinel,), daemon=True).start()


@contextmanager
def _dask(address: str) -> Iterator[Workers]:
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise FeedlineError(
            "a Dask cluster needs the package distributed: install feedline[cluster]"
        ) from error
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise FeedlineError(f"no Dask scheduler answers at {address}: {error}; see --scheduler") from error
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise FeedlineError(f"the Dask scheduler at {address} has no workers; start some first")
        try:
            # A lost worker's jobs are given to others by Dask. Jobs write files, so none is a copy of another.
            yield Workers(client.get_executor(pure=False), threads)
        except KilledWorker as error:
            raise FeedlineError(
                f"a job killed several Dask workers one after another ({error}); finished work is kept: give the "
                "workers more memory and run the same command again"
            ) from error
