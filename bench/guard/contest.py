"""Measure the pairs: short slices of ours and of the reference in turn, until the ratios are known well enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.guard.clock import Spent, run
from bench.guard.pairs import Pair
from bench.intervals import Interval, median_interval

CONFIDENCE = 0.99
SLICE_S = 0.02  # at least; short against what other jobs do to the machine
LEAST_REPEATS = 8  # of 8 values, the least and the greatest enclose the median with 99 %
SERIAL_TURNS = 3  # per repeat, of the stages whose step is short
Signals = dict[str, dict[str, list[float]]]  # stage → signal → a ratio per repeat
Measured = dict[str, dict[str, Interval]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """When to stop.

    Attributes:
        seconds: longest time; on a machine so busy that the least repeats alone take it, as long again.
        decided: whether the figures of a stage are enough; the others go on without it.
    """

    seconds: float
    decided: Callable[[str, dict[str, Interval]], bool] = lambda stage, found: False


def contest(
    pairs: Sequence[Pair],
    synchronize: Callable[[], None],
    patience: Patience,
    say: Callable[[str], None] = lambda text: None,
) -> Signals:
    """Measure every pair once per repeat, in rotating order: ours, reference, reference, ours; the next one mirrored.

    Signals, all ours ÷ reference: `cpu`, CPU time; `time`, wall time without the waiting for cores; where threads work
    one after the other `wait`, that time ÷ CPU time, which is steadier than either; and where they work side by side
    `threads`, how many of them wanted a core.
    """
    signals: Signals = {pair.name: {} for pair in pairs}
    for pair in pairs:
        for side in (pair.ours, pair.reference):
            run(side, synchronize, SLICE_S)
    began, repeat, deadline = time.perf_counter(), 0, 0.0
    active = list(pairs)
    while repeat < LEAST_REPEATS or (active and time.perf_counter() < deadline):
        for i in range(len(active)):
            pair = active[(i + repeat) % len(active)]
            for turn in range(SERIAL_TURNS if pair.serial else 1):
                for name, value in _turn(pair, synchronize, ours_first=(repeat + turn) % 2 == 0).items():
                    signals[pair.name].setdefault(name, []).append(value)
        repeat += 1
        if repeat == LEAST_REPEATS:
            deadline = max(began + patience.seconds, 2 * time.perf_counter() - began)
        if repeat >= LEAST_REPEATS:
            found = summarise(signals)
            active = [pair for pair in active if not patience.decided(pair.name, found[pair.name])]
    say(f"{repeat} repeats in {time.perf_counter() - began:.0f} s")
    return signals


def summarise(signals: Signals) -> Measured:
    """Median of every ratio with its interval."""
    return {
        stage: {name: median_interval(values, CONFIDENCE) for name, values in ratios.items()}
        for stage, ratios in signals.items()
    }


def _turn(pair: Pair, synchronize: Callable[[], None], *, ours_first: bool) -> dict[str, float]:
    def ours() -> Spent:
        return run(pair.ours, synchronize, SLICE_S)

    def reference() -> Spent:
        return run(pair.reference, synchronize, SLICE_S)

    if ours_first:
        a, b, c, d = ours(), reference(), reference(), ours()
        return _ratios(pair, (a, d), (b, c))
    a, b, c, d = reference(), ours(), ours(), reference()
    return _ratios(pair, (b, c), (a, d))


def _ratios(pair: Pair, ours: tuple[Spent, Spent], reference: tuple[Spent, Spent]) -> dict[str, float]:
    def ratio(of: Callable[[Spent], float]) -> float:
        return sum(map(of, ours)) / sum(map(of, reference))

    cpu = ratio(lambda spent: spent.cpu_s)
    if pair.serial:
        total = ratio(lambda spent: spent.serial_s)
        return {"cpu": cpu, "time": total, "wait": total / cpu}
    return {
        "cpu": cpu,
        "time": ratio(lambda spent: spent.parallel_s),
        "threads": ratio(lambda spent: spent.threads),
    }
