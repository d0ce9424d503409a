"""Shards in an object store: fetched into the node's cache ahead of their use, in the order of the epoch.

What an epoch needs, and when, is known before it starts: the order is a pure function. So there is nothing to guess.
Threads fetch shard after shard in the order of first use, hold each until the last step that reads it, and run
ahead, over the end of the epoch too, as far as this rank's share of the cache allows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np

from loader.cache import Held, ShardCache
from loader.download import Wanted
from loader.order import Ids
from loader.reader import ShardReader
from loader.uses import Use, peak_bytes, uses
from loader.where import Steps
from shard.dataset import Dataset, Split
from shard.errors import FeedlineError

_log = logging.getLogger("feedline.loader")
_THREADS = 4  # shards fetched at once: hides latency, and one slow connection
_JOIN_S = 10.0  # an attempt in progress gives up within this time of being told to
_SHARE = 2  # of the cache for one loader: training and evaluation are open at the same time
_WHOLE = 1.25  # times a split's size: a cache that takes it all, and some of another split
_LOOK_S = 1.0  # between two looks at whether anything arrives
_FILES = 512  # descriptors for everything but the locks on shards
_SLOW_START = 0.5  # share of a split that the first step needs, from which on a warning is due


class RemoteShards:
    """See `loader.where.Shards`.

    Args:
        dataset: whose split.
        split: shards at URLs.
        cache: of this node.
        local_world_size: ranks that share the cache.
        timeout_s: longest wait for a shard while nothing at all arrives, besides the cache's own waiting.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        cache: ShardCache,
        local_world_size: int,
        timeout_s: float = 300.0,
    ) -> None:
        self._dataset, self._split, self._cache, self._timeout_s = dataset, split, cache, timeout_s
        _allow_open_files(len(split.shards))
        about = dataset.manifest["splits"][split.name]["shards"]
        self._wanted_of = [
            Wanted(split.shard_url(i), split.shard_bytes[i], one["sha256"]) for i, one in enumerate(about)
        ]
        self._budget = _budget(cache, sum(split.shard_bytes), local_world_size)
        self.reader = ShardReader(split, self._locate)
        self.wait_s = 0.0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._held: dict[int, Held] = {}
        self._fetching: set[int] = set()
        self._queue: deque[Use] = deque()  # still to be fetched for this epoch
        self._ends: dict[int, list[int]] = {}  # shards by their last step
        self._planned: set[int] = set()  # of this epoch
        self._steps: Steps = lambda ahead: iter(())
        self._later: deque[Use] | None = None  # of the epoch after this one; None: not planned yet
        self._kept: set[int] = set()  # those that were fetched for it
        self._step = self._begun = 0
        self._errors: dict[int, Exception] = {}  # by shard; raised when that shard is waited for
        self._threads: list[threading.Thread] = []

    def fingerprint(self) -> str:
        """See `Shards.fingerprint`; a store that is away for a moment is waited for."""
        deadline = time.monotonic() + self._cache.retry_s
        while True:
            try:
                return Dataset.open(self._dataset.root).fingerprint
            except FeedlineError as error:  # noqa: PERF203  (once a second)
                if time.monotonic() >= deadline:
                    raise
                _log.warning("%s; trying again", error)
                self._stop.wait(1.0)

    def begin(self, steps: Steps) -> None:
        """See `Shards.begin`."""
        plan = uses(self._split, steps(0))
        self._require_room(plan)
        with self._changed:
            self._errors.clear()  # what the look-ahead met may have passed
            self._begun += 1
            self._ends = {}
            for use in plan:
                self._ends.setdefault(use.last, []).append(use.shard)
            self._planned = {use.shard for use in plan}
            for shard in set(self._held) - self._fitting(plan):
                self._release(shard)
            self._queue = deque(plan)
            self._kept, self._step = set(), 0
            self._steps, self._later = steps, None
            self._start()
            self._changed.notify_all()

    def available(self, ids: Ids) -> bool:
        """See `Shards.available`."""
        shards = np.unique(self._split.shard[ids]).tolist()
        with self._changed:
            return all(shard in self._held for shard in shards)

    def done(self, step: int) -> None:
        """See `Shards.done`."""
        with self._changed:
            self._step = step + 1
            for shard in self._ends.pop(step, ()):
                self._planned.discard(shard)
                if shard not in self._kept:
                    self._release(shard)
            self._changed.notify_all()

    def close(self) -> None:
        """See `Shards.close`."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_JOIN_S)
        with self._changed:
            for shard in list(self._held):
                self._release(shard)
        self.reader.close()

    def _require_room(self, plan: list[Use]) -> None:
        needed, total = peak_bytes(self._split, plan), sum(self._split.shard_bytes)
        if self._budget is not None and needed > self._budget:
            raise FeedlineError(
                f"this order reads shards of {needed} bytes at the same time, and a rank's share of the cache "
                f"{self._cache.folder} is {self._budget} bytes (limit {self._cache.limit_bytes}); use "
                'shuffle="window" with a smaller window, smaller shards, or a larger cache'
            )
        start = sum(self._split.shard_bytes[use.shard] for use in plan if use.first == 0)
        if plan and start > _SLOW_START * total and len(self._split.shards) > 1 and not self._held:
            _log.warning(
                "the first batch needs %d of the %d bytes of split %s from the store; shuffle='window' starts sooner",
                start,
                total,
                self._split.name,
            )

    def _locate(self, shard: int) -> Path:
        """Wait for a shard."""
        began = arrived = time.monotonic()
        patience_s = self._timeout_s + 2 * self._cache.retry_s
        before = self._progress()
        with self._changed:
            while shard not in self._held:
                if shard in self._errors:
                    raise self._errors[shard]
                if self._stop.is_set():
                    raise FeedlineError("this Loader is closed; make a new one")
                self._changed.wait(_LOOK_S)
                if (now := self._progress()) != before:
                    before, arrived = now, time.monotonic()
                elif time.monotonic() - arrived > patience_s:
                    raise FeedlineError(
                        f"waiting for {self._wanted_of[shard].url}, and nothing has arrived for {patience_s:.0f} s; "
                        "check the store and the network"
                    )
            self.wait_s += time.monotonic() - began
            return self._held[shard].path

    def _progress(self) -> tuple[int, int]:
        return self._cache.fetched_bytes, len(self._held)

    def _release(self, shard: int) -> None:
        held = self._held.pop(shard, None)
        if held is not None:
            self.reader.forget(shard)  # before the release: a mapped file would keep its room
            held.release()

    def _start(self) -> None:
        if self._threads:
            return
        for number in range(min(_THREADS, len(self._split.shards))):
            thread = threading.Thread(target=self._work, name=f"feedline-fetch-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        """Fetch shards until the end; what goes wrong is raised where the shard is waited for."""
        while (shard := self._next()) is not None:
            wanted = self._wanted_of[shard]
            held, failure = None, None
            try:
                held = self._cache.acquire(wanted.url, wanted.size_bytes, wanted.sha256, stop=self._stop)
            except Exception as error:  # noqa: BLE001  (handed to the thread that iterates)
                failure = error
            with self._changed:
                self._fetching.discard(shard)
                if held is not None:
                    self._held[shard] = held
                    if shard not in self._planned | self._kept:  # the position was moved meanwhile
                        self._release(shard)
                elif failure is not None and not self._stop.is_set():
                    self._errors[shard] = failure
                self._changed.notify_all()

    def _next(self) -> int | None:
        """Wait for the next shard to fetch; None at the end."""
        while not self._stop.is_set():
            with self._changed:
                shard = self._choose()
                if shard is not None:
                    self._fetching.add(shard)
                    return shard
                begun, steps = self._begun, self._steps
                if self._queue or self._later is not None:
                    self._changed.wait()
                    continue
                self._later = deque()  # nobody else needs to plan
            later = deque(uses(self._split, steps(1)))  # takes a while: not under the lock
            with self._changed:
                if self._begun == begun:
                    self._later = later
        return None

    def _choose(self) -> int | None:
        while self._queue and self._is_here(self._queue[0].shard):
            self._queue.popleft()
        if not self._queue:
            return self._choose_later()
        shard, first, _ = self._queue[0]
        if first > self._step and not self._fits(shard):
            return None
        self._queue.popleft()
        return shard

    def _choose_later(self) -> int | None:
        """A shard of the next epoch, when all of this one's are here."""
        while self._later:
            shard = self._later[0].shard
            if not self._is_here(shard) and not self._fits(shard):
                return None
            self._later.popleft()
            self._kept.add(shard)
            if not self._is_here(shard):
                return shard
        return None

    def _is_here(self, shard: int) -> bool:
        return shard in self._held or shard in self._fetching

    def _fitting(self, plan: list[Use]) -> set[int]:
        """Shards of the plan's beginning that may be held together."""
        if self._budget is None:
            return {use.shard for use in plan}
        sizes = np.cumsum([self._split.shard_bytes[use.shard] for use in plan])
        return {use.shard for use in plan[: int(np.searchsorted(sizes, self._budget, side="right"))]}

    def _fits(self, shard: int) -> bool:
        if self._budget is None:
            return True
        sizes = self._split.shard_bytes
        used = sum(sizes[one] for one in self._held) + sum(sizes[one] for one in self._fetching)
        return used + sizes[shard] <= self._budget


def _budget(cache: ShardCache, total_bytes: int, local_world_size: int) -> int | None:
    """Bytes that a rank may hold; None: all, because everything fits anyway."""
    if cache.limit_bytes is None or total_bytes * _WHOLE <= cache.limit_bytes:
        return None
    return cache.limit_bytes // (_SHARE * local_world_size)


def _allow_open_files(shards: int) -> None:
    """Have the system allow a descriptor for each shard that may be held, which is its lock.

    Raises:
        FeedlineError: it does not.
    """
    import resource  # only here: not on Windows, where there is no cache either

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shards + _FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise FeedlineError(
            f"{shards} shards in a store need {needed} open files and the system allows {hard}: raise it "
            f"(`ulimit -Hn {needed}`), or build the dataset with larger shards"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
