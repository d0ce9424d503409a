"""Interleaved measurements: method and statistics.

Machines drift: another job, a clock, a warm cache. So every stage is measured once, in rotating order, before
any is measured again, and what is reported is the median over these repeats. A ratio is the median of the
ratios within each repeat, where both sides saw about the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Protocol


class Stage(Protocol):
    """Something that handles images.

    Attributes:
        name: short identifier.
        title: for people.
        lead_in: calls of `step` before the clock starts, enough to use up what was prefetched while waiting.
    """

    name: str
    title: str
    lead_in: int

    def step(self) -> tuple[int, int]:
        """Handle some images and return their number and encoded bytes (0 where they do not matter)."""
        ...

    def synchronize(self) -> None:
        """Wait for work that `step` has started elsewhere (on a GPU)."""
        ...

    def close(self) -> None:
        """Free threads, processes and memory."""
        ...


@dataclass(slots=True)
class Series:
    """Measurements of one stage, one entry per repeat.

    Attributes:
        images_per_s: images per wall-clock second.
        mb_per_s: encoded megabytes (10**6 bytes) per second, 0 where they do not matter.
        cpu_s: CPU seconds per 1,000 images, of this process and its children.
        step_ms: median milliseconds per step.
        steps_ms: milliseconds of every step, by repeat; on a GPU of giving a step its work, which takes as long as the
            step once the queue is full.
    """

    name: str
    title: str
    images_per_s: list[float] = field(default_factory=list)
    mb_per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    steps_ms: list[list[float]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Median images/s."""
        return median(self.images_per_s)


def measure(
    stages: Sequence[Stage],
    repeats: int,
    seconds: float,
    say: Callable[[str], None] = lambda text: None,
    prepare: Callable[[], None] = lambda: None,
) -> list[Series]:
    """Measure all stages `repeats` times for about `seconds` each, interleaved, after one unmeasured round.

    `prepare` is called before each measurement, when the stage before has come to rest.
    """
    series = [Series(stage.name, stage.title) for stage in stages]
    for stage in stages:
        say(f"warming up: {stage.title}")
        _run(stage, min(seconds, 1.0))
    for repeat in range(repeats):
        say(f"repeat {repeat + 1} of {repeats}")
        for i in range(len(stages)):
            turn = (i + repeat) % len(stages)
            images, size_bytes, wall_s, cpu_s, steps_ms = _run(stages[turn], seconds, prepare)
            series[turn].images_per_s.append(images / wall_s)
            series[turn].mb_per_s.append(size_bytes / wall_s / 1e6)
            series[turn].cpu_s.append(cpu_s / images * 1000)
            series[turn].step_ms.append(median(steps_ms))
            series[turn].steps_ms.append(steps_ms)
    return series


def _run(
    stage: Stage, seconds: float, prepare: Callable[[], None] = lambda: None
) -> tuple[int, int, float, float, list[float]]:
    """Images, bytes, wall and CPU seconds, and milliseconds of every step of one measurement."""
    _settle()
    prepare()
    for _ in range(stage.lead_in):
        stage.step()
    stage.synchronize()
    images = size_bytes = 0
    steps_ms: list[float] = []
    cpu_began, began = cpu_seconds(), time.perf_counter()
    last = began
    while last - began < seconds:
        count, size = stage.step()
        images, size_bytes = images + count, size_bytes + size
        now = time.perf_counter()
        steps_ms.append((now - last) * 1000)
        last = now
    stage.synchronize()
    wall_s = time.perf_counter() - began
    return images, size_bytes, wall_s, cpu_seconds() - cpu_began, steps_ms


def _settle() -> None:
    """Wait until the stage before has filled its prefetch queues and gone to sleep, 3 s at most."""
    for _ in range(30):
        before = cpu_seconds()
        time.sleep(0.1)
        if cpu_seconds() - before <= 0.02:  # two ticks: a fifth of one core
            return


def cpu_seconds() -> float:
    """CPU time used so far by this process and, on Linux, its living children (DataLoader workers)."""
    return time.process_time() + sum(map(_process_seconds, children("self")))


def children(pid: str) -> list[str]:
    """Process numbers of all living descendants; on Linux."""
    lists = Path("/proc", pid, "task").glob("*/children")
    direct = [child for path in lists for child in _text(path).split()]
    return direct + [grandchild for child in direct for grandchild in children(child)]


def _process_seconds(pid: str) -> float:
    fields = _text(Path("/proc", pid, "stat")).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # the process has ended meanwhile
        return ""


_TICKS = 100  # USER_HZ, which Linux fixes for /proc
