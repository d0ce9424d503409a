"""One run of the guard, from the workload to the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.guard.baseline import Baseline
from bench.guard.clock import tells_queueing
from bench.guard.compare import Change, Finding, compare, findings
from bench.guard.contest import Measured, Patience, contest, summarise
from bench.guard.pairs import Pair, Workshop
from bench.intervals import Interval
from train.config import Config
from train.environment import environment

_PRECISE = 0.015  # half width of an interval, relative, with which a baseline is content
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Result:
    """What a run found.

    Attributes:
        measured: ratios.
        changes: against the baseline; empty without one.
        findings: regressions, seen twice.
        record: JSON-able.
    """

    measured: Measured
    changes: list[Change]
    findings: list[Finding]
    record: dict[str, Any]


def settings(workshop: Workshop, config: Config) -> dict[str, Any]:
    """What decides about the ratios besides the machine."""
    images = config.input
    return {
        "model": config.model.arch,
        "size": images.size,
        "batch_size": images.batch_size,
        "crop": images.crop,
        "precision": config.step.precision,
        "backend": workshop.loader.backend,
        "device": workshop.device.type,
        "bytes_per_image": round(sum(map(len, workshop.hand.encoded)) / len(workshop.hand.encoded)),
        "queueing_known": tells_queueing(),
    }


def measure(config: Config, device: torch.device, seconds: float, say: Say) -> Result:
    """Measure, and compare with nothing."""
    with _workshop(config, device) as workshop:
        patience = Patience(seconds=seconds, decided=_precise)
        measured = summarise(contest(workshop.make(), workshop.synchronize, patience, say))
        return Result(measured, [], [], _record(workshop, config, measured))


def check(
    config: Config,
    device: torch.device,
    seconds: float,
    baseline: Callable[[dict[str, Any]], Baseline],
    say: Say,
) -> Result:
    """Measure and compare. What looks like a regression is measured once more, and counts only if it is seen again.

    Args:
        config: workload.
        device: where training would run.
        seconds: longest time for either measurement.
        baseline: to compare with, of these settings.
        say: gets a line of progress.
    """
    with _workshop(config, device) as workshop:
        known = baseline(settings(workshop, config))
        pairs = workshop.make()

        def look(some: list[Pair], enough: Callable[[list[Change]], bool]) -> Measured:
            def decided(stage: str, found: dict[str, Interval]) -> bool:
                return enough(compare({stage: found}, known))

            patience = Patience(seconds=seconds, decided=decided)
            return summarise(contest(some, workshop.synchronize, patience, say))

        measured = look(pairs, lambda found: any(c.regressed for c in found) or all(c.decided for c in found))
        changes = compare(measured, known)
        if suspects := {(change.stage, change.signal) for change in changes if change.regressed}:
            stages = {stage for stage, _ in suspects}
            say(f"measuring again: {', '.join(sorted(stages))}")
            again = look(
                [pair for pair in pairs if pair.name in stages],
                lambda found: all(c.decided for c in found if (c.stage, c.signal) in suspects),
            )
            changes = confirmed(changes, compare(again, known))
        found = findings(changes, {pair.name: pair.upstream for pair in pairs})
        return Result(measured, changes, found, _record(workshop, config, measured))


def confirmed(first: list[Change], again: list[Change]) -> list[Change]:
    """The changes of the first look, of which only those regressed that regressed in both."""
    both = {(change.stage, change.signal) for change in again if change.regressed}
    return [
        change if not change.regressed or (change.stage, change.signal) in both else change.acquitted()
        for change in first
    ]


def _precise(stage: str, found: dict[str, Interval]) -> bool:
    return all(one.high - one.low <= 2 * _PRECISE * one.value for one in found.values())


@contextmanager
def _workshop(config: Config, device: torch.device) -> Iterator[Workshop]:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)  # a step on all cores waits for the slowest of them, whoever else is there
    try:
        with Workshop(config, device) as workshop:
            yield workshop
    finally:
        torch.set_num_threads(threads)


def _record(workshop: Workshop, config: Config, measured: Measured) -> dict[str, Any]:
    return {
        "benchmark": "guard",
        "environment": environment(workshop.device),
        "settings": settings(workshop, config),
        "ratios": {
            stage: {
                name: {"value": round(one.value, 4), "low": round(one.low, 4), "high": round(one.high, 4)}
                for name, one in signals.items()
            }
            for stage, signals in measured.items()
        },
    }
