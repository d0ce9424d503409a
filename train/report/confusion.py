"""The confusion matrix as a table of colours; of many classes, those that are confused most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.assess.per_class import Matrix, confused_pairs

MOST = 20  # classes that are shown
_NUMBERED = 12  # classes whose cells have room for a number


@dataclass(frozen=True, slots=True)
class Square:
    """A cell. Alpha: strength of its colour, 0 … 1; right: whether class and prediction agree."""

    text: str
    tip: str
    alpha: float
    right: bool


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Rows are classes, columns what they were taken for.

    Attributes:
        classes: names of the rows.
        heads: names of the columns: the same, and the others together where there are more.
        rows: cells.
        total: classes that there are.
    """

    classes: list[str]
    heads: list[str]
    rows: list[list[Square]]
    total: int


def heat_map(matrix: Matrix, names: Sequence[str]) -> HeatMap:
    """Colour a confusion matrix by the share of each row, with the square root: one in a hundred is still seen.

    Args:
        matrix: int64 [classes, classes], true × predicted.
        names: of the classes.
    """
    chosen = _chosen(matrix)
    shown = matrix[np.ix_(chosen, chosen)]
    heads = [names[i] for i in chosen]
    if len(chosen) < len(matrix):
        others = matrix[chosen].sum(axis=1) - shown.sum(axis=1)
        shown = np.concatenate([shown, others[:, None]], axis=1)
        heads.append("any other")
    support = matrix[chosen].sum(axis=1)
    rows = [
        [
            _square(int(count), int(total), names[chosen[row]], heads[column], right=row == column,
                    numbered=len(chosen) <= _NUMBERED)
            for column, count in enumerate(counts)
        ]
        for row, (counts, total) in enumerate(zip(shown, support, strict=True))
    ]  # fmt: skip
    return HeatMap([names[i] for i in chosen], heads, rows, len(matrix))


def _chosen(matrix: Matrix) -> list[int]:
    """Labels of the classes that are shown, rising: all, or those of the most confused pairs."""
    if len(matrix) <= MOST:
        return list(range(len(matrix)))
    chosen: dict[int, None] = {}
    for pair in confused_pairs(matrix, MOST * MOST):
        both = [label for label in (pair.true, pair.predicted) if label not in chosen]
        if len(chosen) + len(both) <= MOST:
            chosen.update(dict.fromkeys(both))
    return sorted(chosen) or list(range(MOST))  # nothing is confused: the first will do


def _square(count: int, total: int, true: str, predicted: str, *, right: bool, numbered: bool) -> Square:
    share = count / total if total else 0.0
    what = f"{true}: right" if right else f"{true}, taken for {predicted}"
    seen = f"{count:,} of {total:,} images ({100 * share:.1f} %)" if total else "no image to be tested on"
    tip = f"{what}\n{seen}"
    return Square(f"{count}" if numbered and count else "", tip, round(math.sqrt(share), 2), right)
