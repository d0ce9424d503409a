"""Accuracy against cost as a picture, with the Pareto front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from train.compare.tables import Comparison
from train.whole import whole

_BLUE, _GREY = "#0072B2", "#8a8a8a"  # told apart by people with any colour vision, and by shape
_NAMED = 40  # beyond, names would cover the points
_LOG = 20  # largest cost over smallest, from which on the axis is logarithmic


def draw(found: Comparison, path: Path) -> int:
    """Write a PNG; returns how many runs are in it: those with a top-1 and a cost. Of none nothing is written."""
    points = [
        (run, cost, run.top1, front)
        for run, front in zip(found.runs, found.front, strict=True)
        if run.top1 is not None and (cost := found.cost.of(run)) is not None
    ]
    if not points:
        return 0
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    front = sorted(((cost, top1) for _, cost, top1, on in points if on), key=lambda point: point[0])
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
        chosen = [(cost, top1) for run, cost, top1, on in points if of(run, on)]
        if chosen:
            colour = _BLUE if label == "Pareto front" else _GREY
            fill = "none" if label == "unfinished" else colour
            axes.plot(
                *zip(*chosen, strict=True), mark, color=colour, mfc=fill, mew=1.6, ms=8, label=label, zorder=2
            )
    if len(points) <= _NAMED:
        _name(axes, [(run.name, cost, top1) for run, cost, top1, _ in points])
    costs = [cost for _, cost, _, _ in points]
    if min(costs) > 0 and max(costs) / min(costs) > _LOG:
        axes.set_xscale("log")
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel(f"{found.cost.label}  ({'less' if found.cost.less else 'more'} is better)")
    axes.set_ylabel("top-1, %")
    axes.set_title("Accuracy against cost", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    with whole(path) as aside:
        figure.savefig(aside, dpi=130, format="png")
    plt.close(figure)
    return len(points)


def _intervals(axes: Any, found: Comparison, costs: dict[str, float]) -> None:
    """Draw 95 % intervals of top-1 where all runs were evaluated on the same samples."""
    if found.shared.lacking:
        return
    for name, one in found.shared.evaluated.items():
        if name in costs:
            axes.plot([costs[name]] * 2, one.figures["top1_interval"], color=_GREY, lw=1, zorder=1)
    axes.plot([], [], color=_GREY, lw=1, label="95 % interval of top-1")


def _name(axes: Any, points: list[tuple[str, float, float]]) -> None:
    """Write names beside points; a name goes below where the one of a near point is above."""
    spread = np.ptp([cost for _, cost, _ in points]) or 1
    placed: list[tuple[float, float, bool]] = []
    height = np.ptp([top1 for _, _, top1 in points]) or 1
    for name, cost, top1 in sorted(points, key=lambda point: (point[1], point[2])):
        near = [p for p in placed if abs(p[0] - cost) < 0.15 * spread and abs(p[1] - top1) < 0.08 * height]
        above = not (near and near[-1][2])
        placed.append((cost, top1, above))
        axes.annotate(
            name, (cost, top1), xytext=(6, 6 if above else -6), textcoords="offset points", ha="left",
            va="bottom" if above else "top", fontsize=8,
        )  # fmt: skip
