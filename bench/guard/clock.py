"""What a slice of work took: on the wall, on the cores, and in the queue for them.

A sleep costs no CPU time, and the wall time of a machine that others use is mostly theirs. What tells the two apart is
the scheduler's own account: Linux counts for every thread how long it was ready to run and had no core (run delay,
/proc/PID/task/TID/schedstat, Documentation/scheduler/sched-stats.rst). Wall time less that is the time of the code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TASKS = Path("/proc/self/task")


@dataclass(frozen=True, slots=True)
class Spent:
    """Time of one slice, per step.

    Attributes:
        wall_s: on the clock.
        cpu_s: on all cores, of all threads of this process.
        queued_s: of all threads, ready to run and without a core; 0 where the system does not tell.
    """

    wall_s: float
    cpu_s: float
    queued_s: float

    @property
    def threads(self) -> float:
        """How many threads, on average, wanted a core: the work's own parallelism, however many cores it got."""
        return (self.cpu_s + self.queued_s) / self.wall_s

    @property
    def serial_s(self) -> float:
        """Wall time without the waiting for cores, where threads work one after the other.

        Never less than the CPU time: the account of a thread that runs just now is a few milliseconds old.
        """
        return max(self.wall_s - self.queued_s, self.cpu_s)

    @property
    def parallel_s(self) -> float:
        """The same where they work side by side: CPU time ÷ `threads`."""
        return self.cpu_s / self.threads


def run(
    step: Callable[[], None], synchronize: Callable[[], None], seconds: float, tasks: Path = _TASKS
) -> Spent:
    """Call `step` until `seconds` are over, at least once."""
    steps = 0
    before, cpu_began = _queued(tasks), time.process_time()
    began = time.perf_counter()
    while not steps or time.perf_counter() - began < seconds:
        step()
        steps += 1
    synchronize()
    wall_s = time.perf_counter() - began
    cpu_s = time.process_time() - cpu_began
    after = _queued(tasks)
    queued_ns = sum(after[thread] - before.get(thread, 0) for thread in after)
    return Spent(wall_s / steps, cpu_s / steps, queued_ns / 1e9 / steps)


def tells_queueing(tasks: Path = _TASKS) -> bool:
    """Whether this system tells how long threads wait for a core."""
    return bool(_queued(tasks))


def _queued(tasks: Path) -> dict[str, int]:
    """Nanoseconds in the queue for a core, by thread; empty but on Linux with CONFIG_SCHED_INFO."""
    found = {}
    for path in tasks.glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread may have ended meanwhile
            found[path.parent.name] = int(path.read_text().split()[1])
    return found
