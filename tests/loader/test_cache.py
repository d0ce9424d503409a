"""The shard cache: one download for all, bounded, never in the way of a process that died."""

import errno
import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.slow_server import SlowServer
from loader import ShardCache
from loader.cache import default_cache
from loader.download import Wanted, download
from shard.errors import FeedlineError

SIZE = 50_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SlowServer]:
    """Six objects of 50,000 bytes."""
    folder = tmp_path / "store"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.tar").write_bytes(bytes([i]) * SIZE)
    with SlowServer(folder) as running:
        yield running


def arguments(store: SlowServer, i: int) -> tuple[str, int, str]:
    return f"{store.url}/{i}.tar", SIZE, hashlib.sha256(bytes([i]) * SIZE).hexdigest()


def used(cache: ShardCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.glob("*.tar"))


def test_the_least_recently_used_goes_and_what_is_held_stays(store: SlowServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3 * SIZE, retry_s=0.5)
    held = cache.acquire(*arguments(store, 0))
    for i in (1, 2, 1, 3):
        cache.acquire(*arguments(store, i)).release()
        assert used(cache) <= 3 * SIZE
    assert held.path.read_bytes() == bytes(SIZE)
    before = dict(store.requests)
    cache.acquire(*arguments(store, 1)).release()  # 2 was older
    assert dict(store.requests) == before
    cache.acquire(*arguments(store, 2)).release()
    assert store.requests["2.tar"] == 2
    more = [cache.acquire(*arguments(store, i)) for i in (4, 5)]
    with pytest.raises(FeedlineError, match=r"no room for .*3.tar \(50000 bytes\).* raise the limit"):
        cache.acquire(*arguments(store, 3))
    for one in (held, *more):
        one.release()
    cache.acquire(*arguments(store, 3)).release()


def test_an_object_larger_than_the_cache_and_a_wrong_limit(store: SlowServer, tmp_path: Path) -> None:
    with pytest.raises(FeedlineError, match=r"limit of the cache .* is 0 bytes"):
        ShardCache(tmp_path / "cache", 0)
    with pytest.raises(FeedlineError, match=r"has 50000 bytes and the limit .* is 10"):
        ShardCache(tmp_path / "cache", 10).acquire(*arguments(store, 0))


def test_a_disk_that_others_filled(
    store: SlowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes less than the limit: what is not held goes, and only when all is held it is an error."""
    cache = ShardCache(tmp_path / "cache", 6 * SIZE)

    def full_after_three(wanted: Wanted, part: Path, **options: Any) -> None:
        if used(cache) + wanted.size_bytes > 3 * SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        download(wanted, part, **options)

    monkeypatch.setattr("loader.cache.download", full_after_three)
    held = [cache.acquire(*arguments(store, i)) for i in range(3)]
    held[1].release()
    held[1] = cache.acquire(*arguments(store, 3))
    assert used(cache) == 3 * SIZE
    assert [one.path.exists() for one in held] == [True] * 3
    with pytest.raises(FeedlineError, match=r"disk of the cache .* is full: .*4.tar needs 50000 .* in use"):
        cache.acquire(*arguments(store, 4))
    assert not list(cache.folder.glob("*.part"))
    assert [one.path.exists() for one in held] == [True] * 3


def test_missing_objects_are_an_error_at_once(store: SlowServer, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(FeedlineError, match=r"cannot fetch .*9.tar: not found.*check the URL"):
        ShardCache(tmp_path / "cache", retry_s=60).acquire(f"{store.url}/9.tar", SIZE, "0" * 64)
    assert time.monotonic() - began < 30  # no retries


def test_threads_share_a_download(store: SlowServer, tmp_path: Path) -> None:
    store.bytes_per_s = 500_000
    cache = ShardCache(tmp_path / "cache")
    threads = [
        threading.Thread(target=lambda: cache.acquire(*arguments(store, 0)).release()) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.requests["0.tar"] == 1
    assert cache.fetched == 1


def _acquire(
    folder: Path, about: tuple[str, int, str], hold: bool, ready: "multiprocessing.Queue[int]"
) -> None:
    held = ShardCache(folder).acquire(*about)
    ready.put(os.getpid())
    if hold:
        time.sleep(60)
    held.release()


def test_processes_share_a_download_and_a_killed_one_leaves_nothing_locked(
    store: SlowServer, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    ready: multiprocessing.Queue[int] = context.Queue()
    cache = ShardCache(tmp_path / "cache", SIZE, retry_s=0.5)
    workers = [
        context.Process(target=_acquire, args=(cache.folder, arguments(store, 0), hold, ready))
        for hold in (True, False, False)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.get(timeout=120)
    assert store.requests["0.tar"] == 1
    with pytest.raises(FeedlineError, match="no room"):  # a process holds what is there
        cache.acquire(*arguments(store, 1))
    os.kill(workers[0].pid or 0, signal.SIGKILL)
    for worker in workers:
        worker.join()
    cache.acquire(*arguments(store, 1)).release()


def test_a_download_that_was_killed_goes_on_where_it_stood(store: SlowServer, tmp_path: Path) -> None:
    store.bytes_per_s = 8_000  # six seconds
    context = multiprocessing.get_context("spawn")
    ready: multiprocessing.Queue[int] = context.Queue()
    cache = ShardCache(tmp_path / "cache")
    worker = context.Process(target=_acquire, args=(cache.folder, arguments(store, 2), False, ready))
    worker.start()
    while not any(part.stat().st_size for part in cache.folder.glob("*.part")):
        assert worker.is_alive(), "ended before it could be killed"
        time.sleep(0.02)
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join()
    store.bytes_per_s = None
    (part,) = cache.folder.glob("*.part")
    there = part.stat().st_size
    assert 0 < there < SIZE
    with cache.acquire(*arguments(store, 2)) as held:
        assert held.path.read_bytes() == bytes([2]) * SIZE
    assert cache.fetched_bytes == SIZE - there
    assert not list(cache.folder.glob("*.part"))


def test_a_truncated_file_in_the_cache_is_fetched_again(store: SlowServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache")
    with cache.acquire(*arguments(store, 0)) as held:
        path = held.path
    path.write_bytes(b"short")
    with cache.acquire(*arguments(store, 0)) as held:
        assert held.path.stat().st_size == SIZE


def test_a_waiting_call_ends_when_told(store: SlowServer, tmp_path: Path) -> None:
    store.bytes_per_s, stop = 1_000, threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(FeedlineError, match="closed before"):
        ShardCache(tmp_path / "cache").acquire(*arguments(store, 0), stop=stop)


def test_default_and_pickled_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache = default_cache()
    assert cache.folder == tmp_path / "home" / "feedline" / "shards"
    assert cache.limit_bytes is not None
    assert cache.limit_bytes > 0
    copy = pickle.loads(pickle.dumps(ShardCache(tmp_path, 77, retry_s=3)))
    assert (copy.folder, copy.limit_bytes, copy.retry_s) == (tmp_path, 77, 3)
