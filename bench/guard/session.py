"""One run of the guard, from the workload to the record."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.guard.baseline import Baseline
from bench.guard.clock import tells_queueing
from bench.guard.compare import Change, Finding, compare, findings
from bench.guard.contest import Measured, Patience, contest, summarise
from bench.guard.pairs import Workshop
from bench.guard.report import ratios_record
from bench.intervals import Interval
from shard.errors import FeedlineError
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


def measure(
    config: Config, device: torch.device, seconds: float, say: Say, stages: Sequence[str] = ()
) -> Result:
    """Measure these stages, all where none is named, and compare with nothing.

    Raises:
        FeedlineError: there is no such stage.
    """
    with _workshop(config, device) as workshop:
        pairs = {pair.name: pair for pair in workshop.make()}
        if unknown := [stage for stage in stages if stage not in pairs]:
            raise FeedlineError(
                f"--stages names {unknown[0]!r}; this workload's stages are {', '.join(pairs)}"
            )
        patience = Patience(seconds=seconds, decided=_precise)
        chosen = [pairs[stage] for stage in stages] or list(pairs.values())
        measured = summarise(contest(chosen, workshop.synchronize, patience, say))
        return Result(measured, [], [], _record(workshop, config, measured))


def check(
    config: Config,
    device: torch.device,
    seconds: float,
    baseline: Callable[[dict[str, Any]], Baseline],
    again: Callable[[list[str]], Measured],
    say: Say,
) -> Result:
    """Measure and compare. What looks like a regression is measured once more, and counts only if it is seen again.

    Args:
        config: workload.
        device: where training would run.
        seconds: longest time.
        baseline: to compare with, of these settings.
        again: measures these stages in a process of its own: what makes one of them slower for as long as a process
            lives, such as the cores its threads stay on, would be seen twice in the same one.
        say: gets a line of progress.
    """
    known, measured, upstream, record = _first_look(config, device, seconds, baseline, say)
    changes = compare(measured, known)
    suspects = {change.stage for change in changes if change.regressed}
    if stages := [stage for stage in upstream if stage in suspects]:
        if device.type == "cuda":  # the other process needs as much
            gc.collect()
            torch.cuda.empty_cache()
        say(f"measuring again, in a process of its own: {', '.join(stages)}")
        second = again(stages)
        record["again"] = ratios_record(second)
        changes = confirmed(changes, compare(second, known))
    return Result(measured, changes, findings(changes, upstream), record)


def _first_look(
    config: Config,
    device: torch.device,
    seconds: float,
    baseline: Callable[[dict[str, Any]], Baseline],
    say: Say,
) -> tuple[Baseline, Measured, dict[str, tuple[str, ...]], dict[str, Any]]:
    """The baseline, the ratios of all stages, what is upstream of each, and the record; keeps nothing else."""
    with _workshop(config, device) as workshop:
        known = baseline(settings(workshop, config))
        pairs = workshop.make()

        def decided(stage: str, found: dict[str, Interval]) -> bool:
            changes = compare({stage: found}, known)
            return any(c.regressed for c in changes) or all(c.decided for c in changes)

        patience = Patience(seconds=seconds, decided=decided)
        measured = summarise(contest(pairs, workshop.synchronize, patience, say))
        upstream = {pair.name: pair.upstream for pair in pairs}
        return known, measured, upstream, _record(workshop, config, measured)


def confirmed(first: list[Change], again: list[Change]) -> list[Change]:
    """The changes of the first look, and of the stages that were looked at again what was seen then.

    The first look ends with the first signal that regresses: that one's figures lie on the side of chance, and the
    stage's others may be undecided. Of these stages only those regressed of which a signal did in both looks.
    """
    once = {(change.stage, change.signal) for change in first if change.regressed}
    twice = {change.stage for change in again if change.regressed and (change.stage, change.signal) in once}
    second = {
        (change.stage, change.signal): replace(change, regressed=change.regressed and change.stage in twice)
        for change in again
    }
    return [second.get((change.stage, change.signal), change) for change in first]


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
        "ratios": ratios_record(measured),
    }
