"""A run of the guard as text and as a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.guard.baseline import Baseline
from bench.guard.compare import Change, Finding
from bench.guard.contest import Measured
from bench.intervals import Interval

_SIGNALS = {
    "cpu": "CPU time per image",
    "time": "time per image",
    "threads": "threads at work",
    "wait": "waiting",
}


def table(measured: Measured, changes: Sequence[Change]) -> str:
    """One line per ratio."""
    by_name = {(change.stage, change.signal): change for change in changes}
    head = f"{'ours ÷ reference':30}{'median':>9}{'99 % interval':>18}"
    lines = [head + (f"{'baseline':>20}{'change':>10}" if changes else "")]
    for stage, signals in measured.items():
        for signal, found in signals.items():
            change = by_name.get((stage, signal))
            one = change.now if change else found  # of the second look, where there was one
            line = f"{stage + ', ' + _SIGNALS[signal]:30}{one.value:9.3f}{one.low:10.3f} – {one.high:.3f}"
            if change:
                mark = "  <<" if change.regressed else "" if change.decided else "  ?"
                line += f"{change.band.low:12.3f} – {change.band.high:.3f}{change.percent[0]:+8.1f} %{mark}"
            lines.append(line)
    return "\n".join(lines)


def verdict(changes: Sequence[Change], findings: Sequence[Finding], baseline: Baseline) -> str:
    """Name every regression with its change and suspect, or say that there is none."""
    if findings:
        return "\n".join(map(_sentence, findings))
    margin = f"{100 * baseline.margin:.0f} %"
    text = f"no regression: nothing is slower than the baseline's runs by more than {margin} and the noise"
    if open_questions := [c for c in changes if not c.decided]:
        names = ", ".join(f"{c.stage} ({_SIGNALS[c.signal]})" for c in open_questions)
        text += f"; too noisy to tell: {names}; give it longer with --seconds"
    return text + "."


def _sentence(finding: Finding) -> str:
    changes = "; ".join(
        "{} {:+.0f} % ({:+.0f} … {:+.0f} %)".format(_SIGNALS[change.signal], *change.percent)
        for change in finding.changes
    )
    text = f"REGRESSION in {finding.stage}: {changes}. Suspect: {finding.suspect}."
    if finding.followers:
        text += f" Slower because of it: {', '.join(finding.followers)}."
    return text


def ratios_record(measured: Measured) -> dict[str, dict[str, dict[str, float]]]:
    """The ratios, JSON-able: stage → signal → median, ends of its interval, and the interval's confidence."""
    return {
        stage: {
            name: {
                "value": round(one.value, 4),
                "low": round(one.low, 4),
                "high": round(one.high, 4),
                "confidence": one.confidence,
            }
            for name, one in signals.items()
        }
        for stage, signals in measured.items()
    }


def ratios_measured(record: dict[str, dict[str, dict[str, float]]]) -> Measured:
    """What `ratios_record` made a record of."""
    return {
        stage: {name: Interval(**one) for name, one in signals.items()} for stage, signals in record.items()
    }


def verdict_record(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings, JSON-able."""
    return [
        {
            "stage": finding.stage,
            "suspect": finding.suspect,
            "followers": finding.followers,
            "changes": {
                change.signal: dict(
                    zip(("percent", "low", "high"), (round(p, 1) for p in change.percent), strict=True)
                )
                for change in finding.changes
            },
        }
        for finding in findings
    ]
