"""A pool of daemon threads: one that hangs in a dead network mount keeps neither a close nor the process waiting.

`concurrent.futures.ThreadPoolExecutor` joins its threads at the interpreter's exit, whatever they hang in, and works
off its queue before; `multiprocessing.pool.ThreadPool` stops in its destructor, which at exit finds modules already
torn down. Threads must not simply be left running, either: one that comes back from C++ into an interpreter that is
gone may end the process by `std::terminate`. So this pool drops what is queued and waits for what is running, at exit
as when it is closed or forgotten, but no longer than it was told.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

from shard.errors import FeedlineError

P = ParamSpec("P")
T = TypeVar("T")

# What threads take from the queue; None: stop.
_Task = tuple["Future[Any]", Callable[[], Any]]
_Queue = queue.SimpleQueue[_Task | None]


class ThreadPool:
    """Runs functions in daemon threads.

    Args:
        threads: how many.
        name: of the threads, with a number behind it.
        patience_s: longest wait for running functions when the pool ends.

    Raises:
        FeedlineError: the system starts no more threads.
    """

    def __init__(self, threads: int, name: str, patience_s: float) -> None:
        self._tasks: _Queue = queue.SimpleQueue()
        # Threads know the queue and not the pool, so that a pool that nobody refers to any more ends.
        workers = [
            threading.Thread(target=_work, args=(self._tasks,), name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        self._end = weakref.finalize(self, _stop, self._tasks, workers, patience_s, os.getpid())
        try:
            for worker in workers:
                worker.start()
        except RuntimeError as error:  # "can't start new thread"
            self._end()
            raise FeedlineError(
                f"the system does not start {threads} threads ({error}); use fewer threads, or raise `ulimit -u`"
            ) from error

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `function` in a thread when one is free.

        Raises:
            RuntimeError: the pool is closed.
        """
        if not self._end.alive:
            raise RuntimeError("this pool of threads is closed")
        future: Future[T] = Future()
        self._tasks.put((future, lambda: function(*args, **kwargs)))
        return future

    def close(self) -> None:
        """Cancel what has not begun, wait for the rest as long as patience goes, and end the threads."""
        self._end()


def _work(tasks: _Queue) -> None:
    while (task := tasks.get()) is not None:
        future, function = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  (handed to whoever asks for the result)
                future.set_exception(error)
        del task, future, function  # or the last result would be kept for as long as the thread is idle


def _stop(tasks: _Queue, workers: list[threading.Thread], patience_s: float, pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked child has no threads of its parent
    while True:
        try:
            task = tasks.get_nowait()
        except queue.Empty:
            break
        if task is not None:
            task[0].cancel()
    for _ in workers:
        tasks.put(None)
    deadline = time.monotonic() + patience_s
    for worker in workers:
        # The garbage collector, which may call this, runs in any thread.
        if worker is not threading.current_thread() and worker.is_alive():
            worker.join(max(0.0, deadline - time.monotonic()))
