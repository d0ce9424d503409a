"""The confusion matrix as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from train.assess.evaluation import Evaluation
from train.plots import pyplot_for

_NAMED = 60  # classes whose names can still be read
_NUMBERED = 12  # classes whose cells have room for a number


def draw_confusion(found: Evaluation, path: Path) -> None:
    """Draw shares of each class (rows) by predicted class, as PNG.

    The colour follows the square root of the share: one confusion in a hundred is still to be seen.
    """
    shown = [*map(_short, found.classes)] if len(found.classes) <= _NAMED else []
    with pyplot_for(shown) as plt:
        figure = _confusion(plt, found, shown)
        figure.savefig(path, dpi=120, format="png")
        plt.close(figure)


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _confusion(plt: Any, found: Evaluation, names: list[str]) -> Any:
    """The figure; without names it shows numbers of classes."""
    from matplotlib.colors import PowerNorm

    matrix, classes = found.matrix, found.classes
    support = matrix.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(matrix, support, out=np.zeros(matrix.shape), where=support > 0)
    n = len(classes)
    side = float(np.clip(2.2 + (0.62 if n <= _NUMBERED else 0.24) * n, 4.5, 15))
    figure, axes = plt.subplots(figsize=(side + 1.2, side), layout="constrained")
    image = axes.imshow(
        shares, cmap="magma_r", norm=PowerNorm(0.5, vmin=0, vmax=100),
        interpolation="nearest" if n <= 600 else "antialiased",
    )  # fmt: skip
    if n <= _NUMBERED:
        for row, column in np.ndindex(n, n):
            if matrix[row, column]:
                colour = "white" if shares[row, column] > 30 else "#222222"
                axes.text(
                    column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=8, color=colour
                )
    if names:
        axes.set_xticks(range(n), names, rotation=90, fontsize=8)
        axes.set_yticks(range(n), names, fontsize=8)
    axes.set_xlabel("predicted" + ("" if names else " (label)"))
    axes.set_ylabel("class" + ("" if names else " (label)"))
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("% of the class")
    axes.set_title(
        f"top-1 {found.top1:.2f} %, {found.samples:,} samples"
        + ("; numbers are samples" if n <= _NUMBERED else ""),
        fontsize=10,
    )
    return figure
