"""The pool of daemon threads."""

import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError

import pytest

from loader.threads import ThreadPool
from shard.errors import FeedlineError


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pool")]


def test_results_and_exceptions_come_back() -> None:
    pool = ThreadPool(2, "pool", 5.0)
    assert sorted(names()) == ["pool-0", "pool-1"]
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("pool"))
    futures = [pool.submit(divmod, 10 * n, 7) for n in range(20)]
    assert [future.result(5) for future in futures] == [divmod(10 * n, 7) for n in range(20)]
    assert isinstance(pool.submit(divmod, 1, 0).exception(5), ZeroDivisionError)
    pool.close()
    pool.close()
    assert names() == []
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(divmod, 1, 1)


def test_closing_cancels_what_waits_and_does_not_wait_for_what_hangs() -> None:
    pool = ThreadPool(1, "stuck", 0.05)
    release, begun = threading.Event(), threading.Event()
    running = pool.submit(lambda: (begun.set(), release.wait()))
    queued = pool.submit(time.sleep, 3600)
    begun.wait()
    pool.close()
    assert not running.done()
    with pytest.raises(CancelledError):
        queued.result(5)
    release.set()
    running.result(5)


def test_a_forgotten_pool_ends_its_threads() -> None:
    pool = ThreadPool(3, "pool", 5.0)
    pool.submit(divmod, 1, 1).result(5)
    assert len(names()) == 3
    del pool
    gc.collect()
    assert names() == []


def test_a_result_is_not_kept_by_an_idle_thread() -> None:
    class Big:
        pass

    pool = ThreadPool(1, "pool", 5.0)
    result = weakref.ref(pool.submit(Big).result(5))
    pool.submit(lambda: None).result(5)  # the thread has come round
    assert result() is None
    pool.close()


def test_a_system_that_starts_no_more_threads_is_told_of_and_those_it_did_start_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def few(thread: threading.Thread) -> None:
        if len(names()) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    with pytest.raises(FeedlineError, match=r"does not start 5 threads .*; use fewer threads"):
        ThreadPool(5, "pool", 5.0)
    assert names() == []
