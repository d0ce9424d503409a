"""Remote shards on a local disk, fetched once for all the processes of a node, within a bounded size.

The folder holds, per shard and named by its SHA-256: `.tar` (complete and checked), `.SIZE.part` (being fetched; the
name reserves its final size) and `.lock` (empty, stays). Whoever holds a shared lock on `.lock` may use the shard;
fetching and removing need the exclusive one. The kernel drops a killed process's locks, so nothing is left to repair.
Names change only under the lock on `cache.lock`, so that a sum over the folder is never wrong. That lock is
taken last and held for moments; with it held, shards are only ever locked without waiting: no deadlock.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from loader.download import Wanted, closed, download
from loader.locks import EXCLUSIVE, SHARED, drop, open_lock, try_lock, unlock
from shard.errors import FeedlineError
from shard.storage import storage_errors

_POLL_S = 0.05
_FREE_SHARE = 0.8
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Held:
    """A shard that stays in the cache until released; usable as a context manager.

    Attributes:
        path: the complete file. Unmap it before the release: the room of a removed file that is mapped is not free.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._locks = [lock]

    def release(self) -> None:
        """Let the shard go; a second time does nothing."""
        try:
            lock = self._locks.pop()  # atomic: of two threads one finds it
        except IndexError:
            return
        _touch(self.path)
        unlock(lock)

    def __enter__(self) -> Held:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        self.release()


class ShardCache:
    """The cache in a folder; any number of threads and processes may have it open.

    Args:
        folder: on a local disk, for nothing else than this; made if need be.
        limit_bytes: of complete shards and downloads in progress together; None: no limit.
        retry_s: how long a store may fail, and how long to wait for room.

    Attributes:
        fetched: shards that this object has downloaded.
        fetched_bytes: bytes that it has received from the store, those of broken attempts included.

    Raises:
        FeedlineError: the folder cannot be used, or the limit is not positive.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None, *, retry_s: float = 120.0) -> None:
        if sys.platform == "win32":
            raise FeedlineError(
                "the shard cache needs file locks that Windows lacks; copy the dataset to a disk"
            )
        if limit_bytes is not None and limit_bytes <= 0:
            raise FeedlineError(
                f"the limit of the cache {folder} is {limit_bytes} bytes; it must be positive"
            )
        self.folder, self.limit_bytes, self.retry_s = Path(folder), limit_bytes, retry_s
        self.fetched = self.fetched_bytes = 0
        self._counting = threading.Lock()
        with storage_errors("use the cache", folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            os.close(open_lock(self.folder / "cache.lock"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as arguments: a copy counts for itself."""
        return partial(type(self), retry_s=self.retry_s), (self.folder, self.limit_bytes)

    def acquire(self, url: str, size_bytes: int, sha256: str, *, stop: threading.Event | None = None) -> Held:
        """Wait until a shard is complete in the cache, fetching it if nobody else does, and hold it.

        Args:
            url: where the store has it.
            size_bytes: out of the manifest.
            sha256: hex digest, out of the manifest.
            stop: when set, a waiting call ends with an error.

        Raises:
            FeedlineError: the store does not give it, it is damaged there, there is no room for it, or `stop` was set.
        """
        if self.limit_bytes is not None and size_bytes > self.limit_bytes:
            raise FeedlineError(
                f"{url} has {size_bytes} bytes and the limit of the cache {self.folder} is {self.limit_bytes}; "
                "raise the limit, or build the dataset with smaller shards"
            )
        with storage_errors("use the cache", self.folder):
            lock = open_lock(self._lock_path(sha256))
            try:
                self._hold(Wanted(url, size_bytes, sha256), lock, stop or threading.Event())
            except BaseException:
                unlock(lock)
                raise
        return Held(self._path(sha256), lock)

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.tar"

    def _lock_path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.lock"

    def _hold(self, wanted: Wanted, lock: int, stop: threading.Event) -> None:
        """Return with the shared lock on a complete shard."""
        path = self._path(wanted.sha256)
        part = self.folder / f"{wanted.sha256}.{wanted.size_bytes}.part"
        seen, since = -1, time.monotonic()
        while not stop.is_set():
            missing = _size(path) != wanted.size_bytes and try_lock(lock, EXCLUSIVE)
            if (
                missing and _size(path) != wanted.size_bytes
            ):  # nobody completed it just before the lock was ours
                self._fetch(wanted, path, part, stop)
            # From exclusive to shared is not one step: somebody may remove the shard in between. So look again.
            if try_lock(lock, SHARED):
                if _size(path) == wanted.size_bytes:
                    return _touch(path)
                drop(lock)
            if (now := _size(part)) != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > 2 * self.retry_s + 60:  # it waits for room, then for the store
                raise FeedlineError(
                    f"waiting for {wanted.url}, which another process has locked in {self.folder} without fetching "
                    f"anything for {time.monotonic() - since:.0f} s; end it (`fuser {self._lock_path(wanted.sha256)}`)"
                )
            stop.wait(_POLL_S)
        raise closed(wanted.url)

    def _fetch(self, wanted: Wanted, path: Path, part: Path, stop: threading.Event) -> None:
        """Download; the exclusive lock is held."""
        path.unlink(missing_ok=True)  # somebody truncated it
        self._make_room(wanted, part, stop)
        while True:
            try:
                download(wanted, part, retry_s=self.retry_s, stop=stop, received=self._count)
                with self._whole_folder(stop, wanted.url):
                    part.replace(path)
                break
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                # Others filled the disk before this cache reached its limit: what it does not need must go.
                with self._whole_folder(stop, wanted.url):
                    if self._remove(self._others(part), wanted.size_bytes):
                        continue
                part.unlink(missing_ok=True)
                raise FeedlineError(
                    f"the disk of the cache {self.folder} is full: {wanted.url} needs {wanted.size_bytes} bytes and "
                    "all other shards there are in use; make room, or set the cache a limit"
                ) from error
        with self._counting:
            self.fetched += 1

    def _count(self, size_bytes: int) -> None:
        with self._counting:
            self.fetched_bytes += size_bytes

    def _make_room(self, wanted: Wanted, part: Path, stop: threading.Event) -> None:
        """Reserve the room of a download, removing others' shards that nobody holds."""
        deadline = time.monotonic() + self.retry_s
        while True:
            with self._whole_folder(stop, wanted.url):
                used = self._evict(wanted.size_bytes, part)
                if self.limit_bytes is None or used + wanted.size_bytes <= self.limit_bytes:
                    part.touch()
                    return
            if time.monotonic() >= deadline:
                raise FeedlineError(
                    f"no room for {wanted.url} ({wanted.size_bytes} bytes) in the cache {self.folder} for "
                    f"{self.retry_s:g} s: its limit is {self.limit_bytes} bytes and {used} bytes are held; raise the "
                    "limit, or use fewer or smaller windows"
                )
            if stop.wait(_POLL_S):
                raise closed(wanted.url)

    def _evict(self, needed_bytes: int, keep: Path) -> int:
        """Remove the least recently used until so much fits.

        Returns:
            bytes that others use.
        """
        if self.limit_bytes is None:
            return 0
        others = self._others(keep)
        used = sum(size_bytes for _, size_bytes, _ in others)
        return used - self._remove(others, used + needed_bytes - self.limit_bytes)

    def _remove(self, entries: list[tuple[int, int, Path]], wanted_bytes: int) -> int:
        """Remove entries that nobody holds, in their order, until so much is freed.

        Returns:
            freed bytes.
        """
        freed = 0
        for _, size_bytes, path in entries:
            if freed >= wanted_bytes:
                break
            lock = open_lock(self._lock_path(path.name.partition(".")[0]))
            try:
                if try_lock(lock, EXCLUSIVE):
                    path.unlink(missing_ok=True)
                    freed += size_bytes
            finally:
                unlock(lock)
        return freed

    def _others(self, keep: Path) -> list[tuple[int, int, Path]]:
        """Entries but `keep`, the least recently used first."""
        return sorted(entry for entry in self._entries() if entry[2] != keep)

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """Last use, size and path of everything that takes room."""
        for path in self.folder.iterdir():
            if path.suffix in (".tar", ".part"):
                with suppress(FileNotFoundError):  # its fetcher gave up just now
                    about = path.stat()
                    reserved = int(path.name.split(".")[1]) if path.suffix == ".part" else 0
                    yield about.st_mtime_ns, max(about.st_size, reserved), path

    @contextmanager
    def _whole_folder(self, stop: threading.Event, url: str) -> Iterator[None]:
        lock = open_lock(self.folder / "cache.lock")
        try:
            while not try_lock(lock, EXCLUSIVE):
                if stop.wait(_POLL_S):
                    raise closed(url)
            yield
        finally:
            unlock(lock)


def default_cache(folder: str | Path | None = None) -> ShardCache:
    """Cache in `folder`, or in $XDG_CACHE_HOME (~/.cache); it may take 80 % of what is free on that disk.

    Raises:
        FeedlineError: the folder cannot be used.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = ShardCache(Path(folder) if folder is not None else Path(home, "feedline", "shards"))
    mine = sum(size_bytes for _, size_bytes, _ in cache._entries())
    cache.limit_bytes = int(_FREE_SHARE * (shutil.disk_usage(cache.folder).free + mine))
    return cache


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _touch(path: Path) -> None:
    now = time.time_ns()  # not os.utime's own clock, which ticks every few milliseconds
    with suppress(FileNotFoundError):
        os.utime(path, ns=(now, now))
