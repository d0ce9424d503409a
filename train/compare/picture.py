"""Accuracy against cost as a picture, with the Pareto front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.compare.runs import Run
from train.compare.tables import Comparison
from train.evaluate import METRICS
from train.plots import pyplot_for
from train.whole import whole

_BLUE, _GREY = "#0072B2", "#8a8a8a"  # told apart by people with any colour vision, and by shape
_NAMED = 40  # beyond, names would cover the points
_LOG = 20  # largest cost over smallest, from which on the axis is logarithmic

_Point = tuple[Run, float, float, bool]  # a run with its cost and score, and whether it is on the front


def draw(found: Comparison, path: Path) -> int:
    """Write a PNG; returns how many runs are in it: those with an accuracy and a cost. Of none nothing is written."""
    points = [
        (run, cost, run.score, front)
        for run, front in zip(found.runs, found.front, strict=True)
        if run.score is not None and (cost := found.cost.of(run)) is not None
    ]
    if not points:
        return 0
    with pyplot_for(run.name for run, *_ in points) as plt:
        figure = _figure(plt, found, points)
        with whole(path) as aside:
            figure.savefig(aside, dpi=130, format="png")
        plt.close(figure)
    return len(points)


def _figure(plt: Any, found: Comparison, points: list[_Point]) -> Any:
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    front = sorted(((cost, score) for _, cost, score, on in points if on), key=lambda point: point[0])
    if front:
        # What the front reaches at a cost between two runs is what the cheaper of them does.
        steps = "steps-post" if found.cost.less else "steps-pre"
        axes.plot(*zip(*front, strict=True), "-", color=_BLUE, lw=1.2, alpha=0.6, drawstyle=steps, zorder=1)
    _intervals(axes, found, {run.name: cost for run, cost, _, _ in points})
    kinds: dict[str, tuple[str, Any]] = {
        "Pareto front": ("o", lambda run, on: on),
        "beaten": ("s", lambda run, on: not on and run.finished),
        "unfinished": ("^", lambda run, on: not run.finished),
    }
    for label, (mark, of) in kinds.items():
        chosen = [(cost, score) for run, cost, score, on in points if of(run, on)]
        if chosen:
            colour = _BLUE if label == "Pareto front" else _GREY
            fill = "none" if label == "unfinished" else colour
            axes.plot(
                *zip(*chosen, strict=True), mark, color=colour, mfc=fill, mew=1.6, ms=8, label=label, zorder=2
            )
    costs = [cost for _, cost, _, _ in points]
    if min(costs) > 0 and max(costs) / min(costs) > _LOG:
        axes.set_xscale("log")
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel(f"{found.cost.label}  ({'less' if found.cost.less else 'more'} is better)")
    axes.set_ylabel(f"{METRICS[found.metric]}, %")
    axes.set_title("Accuracy against cost", fontsize=11)
    axes.grid(alpha=0.25)
    figure.legend(fontsize=9, loc="outside lower center", ncols=4)
    if len(points) <= _NAMED:
        _name(figure, axes, [(run.name, cost, score) for run, cost, score, _ in points])
    return figure


def _intervals(axes: Any, found: Comparison, costs: dict[str, float]) -> None:
    """Draw 95 % intervals of top-1 where all runs were evaluated on the same samples; of mAP `eval` gives none."""
    if found.shared.lacking or found.metric != "top1":
        return
    for name, one in found.shared.evaluated.items():
        if name in costs:
            axes.plot([costs[name]] * 2, one.figures["top1_interval"], color=_GREY, lw=1, zorder=1)
    axes.plot([], [], color=_GREY, lw=1, label="95 % interval of top-1")


def _name(figure: Any, axes: Any, points: list[tuple[str, float, float]]) -> None:
    """Write names beside points, below each other where points are too near for that."""
    figure.draw_without_rendering()  # now the axes have their place
    width, height = (size * figure.dpi / 72 for size in (70, 9))  # of a name, pixels
    placed: list[tuple[float, float]] = []
    for name, cost, score in sorted(points, key=lambda point: -point[2]):
        x, y = axes.transData.transform((cost, score))
        lowest = min((other for at, other in placed if abs(at - x) < width), default=float("inf"))
        down = max(0.0, y - (lowest - height))
        placed.append((x, y - down))
        below = 3 - down * 72 / figure.dpi  # points; a little above a front that goes on to the right
        axes.annotate(name, (cost, score), xytext=(7, below), textcoords="offset points", fontsize=8)
