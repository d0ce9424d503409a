"""Scores by class, and their averages, as tables of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from train.page import Cell, Column, Table
from train.report.judged import Judged


def by_class(judged: Judged, names: Sequence[str]) -> Table:
    """Scores of every class."""
    if judged.matrix is None:
        return _by_class_of_several(judged, names)
    taken = {}
    for label, row in enumerate(judged.matrix):
        others = row.copy()
        others[label] = 0
        if others.any():
            taken[label] = int(others.argmax())
    own = list(names) != judged.classes  # then the dataset's own names are needed, too
    rows = [
        [
            Cell(names[label]),
            *_scores(scores, ("precision", "recall", "f1")),
            Cell(f"{scores['support']:,}", float(scores["support"])),
            Cell(names[taken[label]] if label in taken else ""),
            *([Cell(name)] if own else []),
        ]
        for label, (name, scores) in enumerate(judged.figures["classes"].items())
    ]
    columns = [
        Column("class", False),
        *(Column(head, True) for head in ("precision", "recall", "F1", "images")),
        Column("most often taken for", False),
        *([Column("name in the dataset", False)] if own else []),
    ]
    return Table(f"Scores of {len(rows):,} classes", columns, rows)


def _by_class_of_several(judged: Judged, names: Sequence[str]) -> Table:
    """Scores of every class of a multi-label run."""
    keys = ("average_precision", "precision", "recall", "f1")
    rows = [
        [
            Cell(name),
            *_scores(scores, keys),
            Cell(f"{scores['support']:,}", float(scores["support"])),
        ]
        for name, scores in zip(names, judged.figures["classes"].values(), strict=True)
    ]
    heads = ("average precision", "precision", "recall", "F1", "images")
    return Table(
        f"Scores of {len(rows):,} classes",
        [Column("class", False), *(Column(head, True) for head in heads)],
        rows,
    )


def averages(judged: Judged) -> Table:
    """Scores averaged over the classes."""
    rows = [
        [Cell(name), *(_percent(scores[key]) for key in ("precision", "recall", "f1"))]
        for name, scores in judged.figures["averages"].items()
    ]
    return Table(
        "Averages over the classes",
        [Column("average", False), *(Column(head, True) for head in ("precision", "recall", "F1"))],
        rows,
    )


def _scores(scores: dict[str, Any], keys: Sequence[str]) -> list[Cell]:
    """Scores of a class; empty where it had no image to be tested on, which zeros would not tell."""
    return [_percent(scores[key]) if scores["support"] else Cell("") for key in keys]


def _percent(share: float) -> Cell:
    return Cell(f"{100 * share:.1f} %", share)
