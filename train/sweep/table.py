"""A study as text: its trials, the best first, and the best one's command line."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from train.assess.report import align
from train.progress import clock
from train.run_folder import RunFolder
from train.summary import read as read_summary
from train.sweep.plan import UNITS, Plan, worth
from train.sweep.space import Value
from train.sweep.study import REASON, Study

_WIDEST = 100  # of a failure's reason in the table


def report(study: Study) -> str:
    """The table of trials and the best one's command line, or what to do where there is none."""
    trials = ordered(study.trials, maximised=study.plan.maximised)
    counts = Counter(state_text(study, trial) for trial in trials)
    lines = [
        f"{study.root}: {len(trials)} trials ({', '.join(f'{n} {name}' for name, n in counts.items())})",
        "",
    ]
    lines += [_table(study, trials), ""]
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if finished:
        best = finished[0]
        lines += [
            f"best: trial {best.number}, {worth(study.plan.metric, best.value)}, {study.folder(best.number)}. "
            "The same again:",
            "  " + command_line(study.plan, best, _again(study)),
        ]
    else:
        lines.append("no trial has been finished yet")
    return "\n".join(lines)


def ordered(trials: list[FrozenTrial], *, maximised: bool) -> list[FrozenTrial]:
    """Finished trials, the best first; then pruned ones, the best first; then the others, by number."""

    def rank(trial: FrozenTrial) -> tuple[int, float, int]:
        kind = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1}.get(trial.state, 2)
        value = trial.value if kind < 2 and trial.value is not None else 0.0
        return kind, -value if maximised else value, trial.number

    return sorted(trials, key=rank)


def state_text(study: Study, trial: FrozenTrial) -> str:
    """What became of a trial, in a word."""
    if trial.state == TrialState.COMPLETE:
        return "finished"
    if trial.state == TrialState.RUNNING:
        return "running" if study.at_work(trial.number) else "paused"
    return {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}[trial.state]


def command_line(plan: Plan, trial: FrozenTrial, run_dir: Path) -> str:
    """Command that trains as the trial did."""
    values: dict[str, Value] = trial.params
    return shlex.join(["python", "-m", "train", *plan.trial_flags(values), "--run-dir", str(run_dir)])


def value_text(value: Value) -> str:
    """A searched value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _again(study: Study) -> Path:
    return Path("runs") / f"{study.root.name}-best"


def _table(study: Study, trials: list[FrozenTrial]) -> str:
    flags = [one.flag for one in study.plan.space]
    failed = any(REASON in trial.user_attrs for trial in trials)
    head = ("trial", "", UNITS[study.plan.metric], "epochs", "time", *flags)
    rows: list[tuple[str, ...]] = [
        (
            str(trial.number), state_text(study, trial), _number(trial.value),
            str(max(trial.intermediate_values, default=0)), _time(study.folder(trial.number)),
            *(value_text(trial.params[flag]) if flag in trial.params else "" for flag in flags),
        )
        for trial in trials
    ]  # fmt: skip
    lines = align([head, *rows]).splitlines()
    if failed:
        width = max(map(len, lines))
        for at, trial in enumerate(trials, start=1):
            reason = " ".join(str(trial.user_attrs.get(REASON, "")).split())
            short = reason if len(reason) <= _WIDEST else f"{reason[: _WIDEST - 1]}…"
            lines[at] = f"{lines[at]:<{width}}  {short}".rstrip()
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _time(folder: Path) -> str:
    found = read_summary(RunFolder(folder).summary)
    return clock(found["wall_s"]) if found else ""
