"""Compare measured ratios with a baseline's, and say whose fault a regression is.

A regression is where the whole interval of a ratio lies beyond the baseline's band by more than the margin: neither a
noisy run (its interval is wide) nor a ratio that differs from run to run (its band is wide) gives an alarm. The fault
is of the stages that are slower while nothing before them is; what follows from them is listed, not blamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.guard.baseline import Band, Baseline
from bench.guard.contest import CONFIDENCE, Measured
from bench.intervals import Interval

_FEWER_IS_WORSE = ("threads",)
_CLEAR = 0.5  # of a change in time that CPU time must explain to be called work


@dataclass(frozen=True, slots=True)
class Change:
    """A ratio against the baseline's.

    Attributes:
        stage: of the pair.
        signal: "cpu", "time", "wait" or "threads".
        now: measured.
        band: the baseline's.
        regressed: whether it is worse beyond the noise and the margin.
        decided: whether more measuring could not change that.
    """

    stage: str
    signal: str
    now: Interval
    band: Band
    regressed: bool
    decided: bool

    @property
    def percent(self) -> tuple[float, float, float]:
        """Change, and the least and the greatest that it may be, in percent."""
        return (
            100 * (self.now.value / self.band.value - 1),
            100 * (self.now.low / self.band.high - 1),
            100 * (self.now.high / self.band.low - 1),
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """A stage that became slower by itself.

    Attributes:
        stage: its name.
        changes: of its signals that regressed.
        suspect: what kind of change does that.
        followers: stages that are slower because of it.
    """

    stage: str
    changes: list[Change]
    suspect: str
    followers: list[str]


def compare(measured: Measured, baseline: Baseline) -> list[Change]:
    """Every ratio that the baseline knows."""
    found = []
    for stage, signals in measured.items():
        for signal, now in signals.items():
            if (band := baseline.band(stage, signal)) is not None:
                found.append(_change(stage, signal, now, band, baseline.margin))
    return found


def _change(stage: str, signal: str, now: Interval, band: Band, margin: float) -> Change:
    if now.confidence < CONFIDENCE:  # too few repeats to say anything
        return Change(stage, signal, now, band, regressed=False, decided=False)
    if signal in _FEWER_IS_WORSE:
        limit = band.low / (1 + margin)
        return Change(stage, signal, now, band, now.high < limit, now.high < limit or now.low > limit)
    limit = band.high * (1 + margin)
    return Change(stage, signal, now, band, now.low > limit, now.low > limit or now.high < limit)


def findings(changes: Sequence[Change], upstream: dict[str, tuple[str, ...]]) -> list[Finding]:
    """Whose fault it is.

    Args:
        changes: of all stages.
        upstream: by stage, those whose slowness shows in it, in the order of the pipeline.
    """
    slower = {stage: [c for c in changes if c.stage == stage and c.regressed] for stage in upstream}
    slower = {stage: found for stage, found in slower.items() if found}
    roots = [stage for stage in slower if not set(upstream[stage]) & set(slower)]
    return [
        Finding(
            root,
            slower[root],
            suspect(root, [c for c in changes if c.stage == root]),
            [stage for stage in slower if root in upstream[stage]],
        )
        for root in roots
    ]


def suspect(stage: str, changes: Sequence[Change]) -> str:
    """What kind of change makes these signals move as they do."""
    by_signal = {change.signal: change for change in changes}
    cpu, time, threads = (by_signal.get(name) for name in ("cpu", "time", "threads"))
    work, longer = (max(0.0, change.percent[0]) if change else 0.0 for change in (cpu, time))
    if cpu is not None and cpu.regressed and work >= _CLEAR * longer:
        return f"more work per image: {_MORE_WORK[stage]}"
    if threads is not None and threads.regressed:
        return "fewer threads at work: the number of threads, their cores (affinity), or a lock that all of them want"
    return f"waiting, more than CPU time explains: {_WAITING[stage]}"


_MORE_WORK = {
    "read": "bytes copied or checked once more, smaller reads, files opened again",
    "decode": "whole images instead of windows, an extra copy, another libjpeg",
    "transform": "a resize, copy or conversion done twice, or another, slower kernel",
    "loader": "work per batch (copies, collating, bookkeeping), as reading, decoding and transforming are not slower",
    "step": "operations added to the step: a cast, a copy, a metric, a loop over parameters",
    "real": "work between loader and step, as both alone are not slower",
}
_WAITING = {
    "read": "a sleep, a lock, or storage that answers later",
    "decode": "a sleep or a lock around the decoder",
    "transform": "a sleep or a lock in the backend, or a wait between its tasks",
    "loader": "a sleep or a lock, fewer threads, or less prefetched",
    "step": "a synchronisation (.item(), .cpu(), synchronize), a barrier, or a sleep",
    "real": "a synchronisation between loader and step, or too little prefetched",
}
