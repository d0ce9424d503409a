"""A loader of exactly known rate, on a clock that only moves when somebody sleeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BATCH = 50


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Images:
    num_valid: int = BATCH


def steady(clock: Clock, images_per_s: float, depth: int, stock: int = 0) -> Iterator[Images]:
    """A loader of exactly this rate: one batch after another, as long as at most `depth` finished ones wait."""
    finished = [clock.now] * stock  # when batch k is finished
    taken: list[float] = []
    k = 0
    while True:
        if k >= len(finished):
            room = taken[k - depth] if k >= depth else 0.0  # batch k is begun when batch k - depth is taken
            finished.append(max(finished[-1] if finished else 0.0, room) + BATCH / images_per_s)
        clock.now = max(clock.now, finished[k])
        taken.append(clock.now)
        # What the loader finishes while nobody asks.
        while len(finished) < k + 1 + depth:
            n = len(finished)
            if n - depth >= len(taken):
                break
            finished.append(max(finished[-1], taken[n - depth] if n >= depth else 0.0) + BATCH / images_per_s)
        k += 1
        yield Images()
