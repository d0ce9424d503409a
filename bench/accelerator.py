"""Emulated accelerators: what MLPerf Storage measures, with our loader. The arithmetic, without processes.

An accelerator takes a batch, is busy for a known time, and takes the next one; it sleeps meanwhile, so that it costs no
CPU, while the loader prepares batches. Accelerator utilisation (AU) is the part of the time in which it is busy:

    AU = total compute time ÷ total running time

Sources: MLPerf Storage's rules (github.com/mlcommons/storage, Submission_guidelines.md, "Training Workloads": to pass,
AU reaches the workload's least value, 90 % for ResNet-50; the first step is excluded, for the start of the pipeline),
and its program DLIO (github.com/argonne-lcf/dlio_benchmark: main.py `_train`, a barrier of all accelerators after each
step; utils/statscounter.py `compute_metrics_train`: compute time as it was measured, AU as the mean over accelerators;
utils/config.py, metric_exclude_start_steps = 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import floor
from statistics import fmean
from typing import Protocol

PASS = 0.9
_FIRST = 1  # steps that are excluded
_CONFIG = "mlcommons/storage configs/dlio/workload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """What an accelerator does with a batch.

    Attributes:
        step_s: seconds that it computes.
        batch_size: images per step.
        source: where the figures come from.
    """

    step_s: float
    batch_size: int
    source: str

    @property
    def demand(self) -> float:
        """Images/s that keep it busy all the time."""
        return self.batch_size / self.step_s


PRESETS = {
    "h100-resnet50": Accelerator(
        step_s=0.224,
        batch_size=400,
        source=f"{_CONFIG}/resnet50_h100.yaml (ac0424f): computation_time, batch_size",
    ),
    "a100-resnet50": Accelerator(
        step_s=0.435,
        batch_size=400,
        source=f"{_CONFIG}/resnet50_a100.yaml (be18c3e): computation_time, batch_size",
    ),
    "v100-resnet50": Accelerator(
        step_s=0.195,
        batch_size=64,
        source="mlcommons/storage dlio_benchmark/dlio_benchmark/configs/workload/resnet50_v100.yaml (98209d3): "
        "computation_time, batch_size",
    ),
}


class Sized(Protocol):
    """A batch."""

    @property
    def num_valid(self) -> int:
        """How many images it has."""
        ...


@dataclass(frozen=True, slots=True)
class Timings:
    """What one accelerator saw, the first step excluded.

    Attributes:
        compute_s: seconds that it was busy.
        total_s: seconds from the end of the first step to the end of the last one.
        steps: number of steps in them.
        images: number of images in them.
    """

    compute_s: float
    total_s: float
    steps: int
    images: int


class Meet(Protocol):
    """Where the accelerators agree on the next step, as data-parallel training does by its all-reduce."""

    def __call__(self, step: int, ready: float, elapsed_s: float) -> tuple[float, bool]:
        """Wait for the others.

        Args:
            step: number of the next step.
            ready: time from which this accelerator could begin it.
            elapsed_s: seconds that count so far.

        Returns:
            The time at which all begin it, and whether another one follows it.
        """
        ...


def emulate(
    batches: Iterator[Sized],
    step_s: float,
    *,
    drain: int,
    meet: Meet,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    blocking: bool = False,
) -> Timings:
    """Let one accelerator consume batches.

    The accelerator works through a time line of its own: it begins a step when batch and peers are ready and ends it
    `step_s` later, however late this thread wakes up, as a GPU does. The thread asks for the next batch when a step
    begins, because launching work on a GPU does not wait for its end.

    Args:
        batches: from the loader, without end.
        step_s: seconds of computing per batch; 0: take batches as fast as they come.
        drain: batches to throw away first. A loader that had time has finished batches in stock; an accelerator that
            begins with them looks better fed than it is.
        meet: waits for the other accelerators.
        clock: seconds, such as `time.perf_counter`.
        sleep: such as `time.sleep`.
        blocking: ask for a batch when a step has ended, as DLIO does, which also measures the compute time.
    """
    for _ in range(drain):
        next(batches)
    batch = next(batches)
    step, compute_s, images, first_end = 0, 0.0, 0, 0.0
    start, more = meet(0, clock(), 0.0)
    while True:
        if blocking:
            began = clock()
            sleep(step_s)
            end = clock()
            busy_s = end - began
        else:
            end, busy_s = start + step_s, step_s
        if step < _FIRST:
            first_end = end
        else:
            compute_s, images = compute_s + busy_s, images + batch.num_valid
        step += 1
        if not more:
            return Timings(compute_s, end - first_end, step - _FIRST, images)
        batch = next(batches)
        start, more = meet(step, max(clock(), end), end - first_end)
        if not blocking:
            sleep(max(0.0, start - clock()))


def hold(
    batches: Iterator[Sized],
    images_per_s: float,
    depth: int,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[Sized]:
    """Hold a faster loader back to a known rate, like one that makes batch after batch, at most `depth` ahead."""
    free = clock()  # when the batch is ready
    while True:
        batch = next(batches)
        period = batch.num_valid / images_per_s
        free = max(free, clock() - (depth + 1) * period) + period
        sleep(max(0.0, free - clock()))
        yield batch


def utilisation(ranks: Sequence[Timings]) -> float:
    """AU of all accelerators, 0 … 1: the mean of theirs."""
    return fmean(one.compute_s / one.total_s for one in ranks)


def rate(ranks: Sequence[Timings]) -> float:
    """Images/s of all accelerators together."""
    return sum(one.images / one.total_s for one in ranks)


def step_seconds(ranks: Sequence[Timings]) -> float:
    """Seconds that a step's computing took, on average: a sleep ends a little late."""
    return sum(one.compute_s for one in ranks) / sum(one.steps for one in ranks)


def predicted(images_per_s: float, demand: float) -> float:
    """AU of accelerators that together want `demand` images/s, from a loader that can give `images_per_s`."""
    return min(1.0, images_per_s / demand)


def feeds(images_per_s: float, accelerator: Accelerator, least: float = PASS) -> int:
    """Greatest number of accelerators that `images_per_s` keep busy for `least` of the time."""
    return floor(images_per_s / (least * accelerator.demand) + 1e-9)
