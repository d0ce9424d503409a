"""Where the time goes: phases of a step on the device's own time line, and rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch

PHASES = ("data", "forward_backward", "optimiser", "evaluation", "checkpoint")


class Event(Protocol):
    """A moment; a `torch.cuda.Event`, or `HostEvent`."""

    def record(self) -> None:
        """Be the moment at which the device has done all that was queued so far."""
        ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from here to `end`."""
        ...


class HostEvent:
    """See `Event`, for a CPU, which has done its work when it says so."""

    def __init__(self) -> None:
        self.at = 0.0

    def record(self) -> None:
        """See `Event.record`."""
        self.at = time.perf_counter()

    def elapsed_time(self, end: HostEvent) -> float:
        """See `Event.elapsed_time`."""
        return 1000 * (end.at - self.at)


class Timeline:
    """Seconds per phase between moments marked in the device's queue; marking never waits for the device.

    On a GPU the time between the last update's end and a batch's arrival is the time that the device was idle for want
    of data: while it still has work queued, the two moments coincide, however long the host waits.

    Args:
        make_event: makes an unused event.
    """

    def __init__(self, make_event: Callable[[], Event]) -> None:
        self._make_event = make_event
        self._unused: list[Event] = []
        self._marks: list[tuple[str, Event]] = []

    def start(self) -> None:
        """Forget all marks; the next phase starts here."""
        self._unused += [event for _, event in self._marks]
        self._marks = []
        self.mark("")

    def mark(self, phase: str) -> None:
        """End `phase` here, which began at the last mark."""
        event = self._unused.pop() if self._unused else self._make_event()
        event.record()
        self._marks.append((phase, event))

    def read(self) -> dict[str, float]:
        """Seconds per phase since `start`; the device must have finished."""
        seconds: dict[str, float] = {}
        for (_, before), (phase, event) in zip(self._marks, self._marks[1:], strict=False):
            seconds[phase] = seconds.get(phase, 0.0) + before.elapsed_time(event) / 1000
        return seconds


@dataclass(slots=True)
class Rate:
    """Steps done in some time, whole iterations: fetch, step and the look at the losses.

    Attributes:
        steps: optimiser steps.
        seconds: time they took.
        phases: seconds by name; those of the steps, and evaluation and checkpoints, which `seconds` does not hold.
    """

    steps: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def add(self, other: Rate) -> None:
        """Add another stretch."""
        self.steps += other.steps
        self.seconds += other.seconds
        for phase, seconds in other.phases.items():
            self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    def images_per_s(self, batch_size: int) -> float | None:
        """Rate for a global batch of `batch_size`; None before anything was measured."""
        return self.steps * batch_size / self.seconds if self.steps and self.seconds else None

    @property
    def wait_share(self) -> float | None:
        """Part of the time that the device waited for data, 0 … 1."""
        return self.phases.get("data", 0.0) / self.seconds if self.steps and self.seconds else None


class Meter:
    """Measures stretches of steps. The first `warmup` steps of the process are left out.

    Attributes:
        total: everything measured so far.
    """

    def __init__(self, device: torch.device, warmup: int) -> None:
        self.total = Rate()
        self._window, self._steps = Rate(), 0
        self._device, self._warmup = device, warmup
        self._line = Timeline(_cuda_event if device.type == "cuda" else HostEvent)
        self.start()

    def start(self) -> None:
        """Start the clock, after work that is not a step."""
        self._steps = 0
        self._began = time.perf_counter()
        self._line.start()

    def mark(self, phase: str) -> None:
        """End a phase of a step here."""
        self._line.mark(phase)

    def count(self) -> None:
        """Count a step."""
        if self._warmup > 0:
            self._warmup -= 1
            if self._warmup == 0:
                if self._device.type == "cuda":
                    torch.cuda.synchronize()  # once per run: the warm-up must have left the queue
                self.start()
            return
        self._steps += 1

    def stop(self) -> None:
        """Stop the clock; the device must have finished its work."""
        if self._warmup == 0:
            self._window.add(Rate(self._steps, time.perf_counter() - self._began, self._line.read()))
        self.start()

    @contextmanager
    def aside(self, phase: str) -> Iterator[None]:
        """Measure work between stretches, such as an evaluation, on the host's clock."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._window.add(Rate(phases={phase: time.perf_counter() - began}))
            self.start()

    def report(self) -> Rate:
        """Rate since the last report."""
        window, self._window = self._window, Rate()
        self.total.add(window)
        return window


def _cuda_event() -> Event:
    return cast(Event, torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
