"""A study as pictures: how it went, which settings mattered, and which values were good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from train.sweep.plan import UNITS, worth
from train.sweep.space import Dimension
from train.sweep.study import Study
from train.whole import whole

HISTORY, IMPORTANCE, SLICES = "history.png", "importance.png", "slices.png"
_LEAST = 10  # trials, for a forest to say anything
# Okabe and Ito's colours, which people with any colour vision tell apart; marks differ in shape as well.
_BLUE, _ORANGE, _RED, _GREY = "#0072B2", "#E69F00", "#D55E00", "#8a8a8a"
_PANELS = 4  # a row
_MOST_FLAGS = 24


def draw(study: Study) -> tuple[list[Path], str]:
    """Write the pictures into the study folder.

    Returns:
        those that were written, and why others were not; "" of none.
    """
    trials, done, missing = study.trials, _of(study.trials, TrialState.COMPLETE), []
    makers: dict[str, Callable[[], Any]] = {}
    if done:
        makers[HISTORY] = lambda: _history(study, trials)
        makers[SLICES] = lambda: _slices(study, trials)
    else:
        missing.append("no pictures yet: no trial has been finished")
    if reason := _unimportant(study):
        missing.append(f"{IMPORTANCE} is left out: {reason}")
    else:
        makers[IMPORTANCE] = lambda: _importance(study)
    for name, make in makers.items():
        figure = make()
        with whole(study.root / name) as aside:
            figure.savefig(aside, dpi=130, format="png")
        _pyplot().close(figure)
    return [study.root / name for name in makers], "; ".join(missing if done else missing[:1])


def importances(study: Study) -> dict[str, float]:
    """Share of each flag in the variance of the trials' values, by fANOVA (Hutter et al. 2014).

    A forest of regression trees is fitted; shares of flags alone are normalised to 1, the largest first. Pruned trials
    count with their last value: without them a flag whose bad values are pruned would seem not to matter.
    """
    counted = optuna.create_study()
    counted.add_trials(
        optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=trial.value)
        for trial in _valued(study)
    )
    found: dict[str, float] = optuna.importance.get_param_importances(
        counted, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    return found


def _valued(study: Study) -> list[FrozenTrial]:
    return [one for state in (TrialState.COMPLETE, TrialState.PRUNED) for one in _of(study.trials, state)]


def _unimportant(study: Study) -> str:
    """Why there is nothing to say about importance; "" if there is."""
    if len(study.plan.space) < 2:
        return "one flag alone was searched"
    values = [trial.value for trial in _valued(study)]
    if len(values) < _LEAST:
        return f"it takes {_LEAST} trials with a value, and there are {len(values)}"
    if np.ptp(values) == 0:
        return "all trials have the same value"
    return ""


def _history(study: Study, trials: Sequence[FrozenTrial]) -> Any:
    figure, axes = _pyplot().subplots(figsize=(7.5, 4.2), layout="constrained")
    done, pruned, failed = (_of(trials, s) for s in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    better = np.maximum.accumulate if study.plan.maximised else np.minimum.accumulate
    numbers, values = [t.number for t in done], [t.value for t in done]
    last = trials[-1].number
    axes.step([*numbers, last], [*better(values), better(values)[-1]], where="post", color=_BLUE, lw=1.5,
              label="best so far", zorder=1)  # fmt: skip
    axes.plot(numbers, values, "o", color=_BLUE, ms=6, label="finished")
    if pruned:
        axes.plot(
            [t.number for t in pruned], [t.value for t in pruned], "v", mfc="none", mec=_ORANGE, mew=1.6, ms=7,
            label="pruned, when it was",
        )  # fmt: skip
    if failed:  # they have no value: at the edge
        axes.plot(
            [t.number for t in failed], [0.03] * len(failed), "x", color=_RED, ms=8, mew=2, label="failed",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    best = study.best
    assert best is not None  # see `draw`
    axes.plot(best.number, best.value, "o", mfc="none", mec="black", ms=12)
    axes.set_xlim(-0.6, last + 0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("trial, in the order in which they began")
    axes.set_ylabel(_value(study))
    axes.set_title(
        f"{study.root.name}: trial {best.number} is the best of {len(trials)}: {worth(study.plan.metric, best.value)}",
        fontsize=11,
    )
    axes.grid(alpha=0.25)
    figure.legend(fontsize=9, loc="outside lower center", ncols=4)
    return figure


def _importance(study: Study) -> Any:
    shares = importances(study)
    names = list(shares)[:_MOST_FLAGS][::-1]
    figure, axes = _pyplot().subplots(figsize=(7.5, 1.4 + 0.42 * len(names)), layout="constrained")
    widths = [100 * shares[name] for name in names]
    axes.barh([f"--{name}" for name in names], widths, color=_BLUE, height=0.62)
    for row, width in enumerate(widths):
        axes.text(width + 0.01 * max(widths), row, f"{width:.0f} %", va="center", fontsize=9)
    axes.set_xlim(0, 1.12 * max(widths))
    axes.set_xlabel(f"share of the variance of {_value(study)} between trials, %")
    pruned = ", pruned ones by their last value" if _of(study.trials, TrialState.PRUNED) else ""
    axes.set_title(
        f"{study.root.name}: which flag mattered (fANOVA of {len(_valued(study))} trials{pruned})",
        fontsize=11,
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _slices(study: Study, trials: Sequence[FrozenTrial]) -> Any:
    space = study.plan.space[:_MOST_FLAGS]
    columns = min(_PANELS, len(space))
    rows = -(-len(space) // columns)
    figure, grid = _pyplot().subplots(
        rows, columns, figsize=(0.9 + 3.1 * columns, 0.5 + 3.0 * rows), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    done, pruned = _of(trials, TrialState.COMPLETE), _of(trials, TrialState.PRUNED)
    best = study.best
    assert best is not None  # see `draw`
    for axes, one in zip(grid.flat, space, strict=False):
        dots = axes.scatter(
            _places(one, done), [t.value for t in done], c=[t.number for t in done], cmap="viridis",
            vmin=0, vmax=trials[-1].number, s=42, edgecolors="black", linewidths=0.4, zorder=2,
        )  # fmt: skip
        axes.scatter(
            _places(one, pruned), [t.value for t in pruned], marker="v", facecolors="none", edgecolors=_ORANGE,
            s=42, linewidths=1.4, zorder=2,
        )  # fmt: skip
        axes.scatter(
            _places(one, [best]), [best.value], s=150, facecolors="none", edgecolors="black", zorder=3
        )
        _scale(axes, one)
        axes.grid(alpha=0.25)
    for axes in grid.flat[len(space) :]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_ylabel(_value(study))
    figure.colorbar(dots, ax=grid, label="trial", shrink=0.8, pad=0.01).locator.set_params(integer=True)
    pruned_text = "; triangles: pruned, when they were" if pruned else ""
    figure.suptitle(f"{study.root.name}: values tried; ring: the best{pruned_text}", fontsize=11)
    return figure


def _places(one: Dimension, trials: Sequence[FrozenTrial]) -> list[float]:
    values = [trial.params[one.flag] for trial in trials]
    return [one.choices.index(v) for v in values] if one.kind == "choice" else values


def _scale(axes: Any, one: Dimension) -> None:
    axes.set_xlabel(f"--{one.flag}")
    if one.kind == "choice":
        axes.set_xticks(
            range(len(one.choices)), one.choices, rotation=0 if len("".join(one.choices)) < 24 else 60
        )
        axes.set_xlim(-0.5, len(one.choices) - 0.5)
        return
    if one.kind == "log":
        margin = (one.high / one.low) ** 0.05
        axes.set_xscale("log")
        axes.set_xlim(one.low / margin, one.high * margin)
        return
    if one.kind == "int":
        axes.xaxis.get_major_locator().set_params(integer=True)
    margin = 0.06 * (one.high - one.low)
    axes.set_xlim(one.low - margin, one.high + margin)


def _value(study: Study) -> str:
    return f"{UNITS[study.plan.metric]} on the evaluation split"


def _of(trials: Sequence[FrozenTrial], state: TrialState) -> list[FrozenTrial]:
    return [
        trial
        for trial in trials
        if trial.state == state and (state == TrialState.FAIL or trial.value is not None)
    ]


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot
