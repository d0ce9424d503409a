"""The confusion matrix, and precision, recall and F1 out of it, as scikit-learn's `classification_report` has them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of a class, or their average; 0 … 1, and 0 where there is nothing to divide by.

    Attributes:
        precision: of the samples taken for the class, the share that is of it.
        recall: of the class's samples, the share taken for it.
        f1: harmonic mean of both.
        support: samples of the class.
    """

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two classes that the network confuses.

    Attributes:
        true: label of the class that samples are of.
        predicted: label of the class that they are taken for.
        samples: how many are.
        share: of all samples of the true class, 0 … 1.
    """

    true: int
    predicted: int
    samples: int
    share: float


def confusion_matrix(labels: Matrix, predicted: Matrix, classes: int) -> Matrix:
    """Count samples by class (rows) and predicted class (columns): int64 [classes, classes]."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def scores_by_class(matrix: Matrix) -> list[Scores]:
    """Scores of every class of a confusion matrix."""
    return scores_of(np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1))


def scores_of(hits: Matrix, taken: Matrix, support: Matrix) -> list[Scores]:
    """Scores out of counts, int64 [classes] each: samples of the class taken for it, taken for it, and of it."""
    columns = _divide(hits, taken), _divide(hits, support), _divide(2 * hits, taken + support)
    return [
        Scores(precision=float(p), recall=float(r), f1=float(f), support=int(n))
        for p, r, f, n in zip(*columns, support, strict=True)
    ]


def averages(matrix: Matrix) -> dict[str, Scores]:
    """Averages over classes, those without samples included: by name, as in scikit-learn.

    micro: of all decisions together (one class a sample: the accuracy); macro: every class counts the same; weighted:
    every class counts by its support.
    """
    each = scores_by_class(matrix)
    table = np.array([(s.precision, s.recall, s.f1) for s in each])
    support = matrix.sum(axis=1)
    total = int(support.sum())
    micro = float(np.trace(matrix) / total)
    rows = {
        "micro": (micro, micro, micro),
        "macro": table.mean(axis=0),
        "weighted": support @ table / total,
    }
    return {
        name: Scores(precision=float(p), recall=float(r), f1=float(f), support=total)
        for name, (p, r, f) in rows.items()
    }


def confused_pairs(matrix: Matrix, most: int) -> list[Pair]:
    """The `most` pairs with the most samples; of equal ones those with the larger share, then in order of labels."""
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    true, predicted = np.nonzero(off)
    counts, shares = off[true, predicted], off[true, predicted] / matrix.sum(axis=1)[true]
    order = np.lexsort((predicted, true, -shares, -counts))[:most]
    return [
        Pair(
            true=int(true[i]),
            predicted=int(predicted[i]),
            samples=int(counts[i]),
            share=float(shares[i]),
        )
        for i in order
    ]


def _divide(numerator: Matrix, denominator: Matrix) -> npt.NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator), np.float64), where=denominator > 0)
