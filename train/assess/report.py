"""An evaluation as text: for the terminal, and whole for report.txt."""

from __future__ import annotations

from collections.abc import Sequence

from train.assess.evaluation import Evaluation
from train.assess.per_class import Scores

HEAD = ("precision", "recall", "f1", "support")
_MOST_CLASSES, _SHOWN = 30, 20  # on a terminal; with more, the worst


def report(found: Evaluation, *, whole: bool = False) -> str:
    """The figures, the table by class, the most confused classes, and the slices by image size.

    Args:
        found: the evaluation.
        whole: all classes, even if there are more than a terminal shows.
    """
    parts = [_figures(found), _classes(found, whole=whole)]
    if found.pairs:
        parts.append(_pairs(found, len(found.pairs) if whole else 10))
    parts.append(_slices(found))
    return "\n\n".join(parts) + "\n"


def _figures(found: Evaluation) -> str:
    lines = [
        f"top-1 {found.top1:.2f} % {_interval(found.top1_interval)}, top-5 {found.top5:.2f} % "
        f"{_interval(found.top5_interval)}",
        f"loss {found.loss:.4f}, expected calibration error {found.ece:.4f}, {found.samples:,} samples",
    ]
    if empty := sum(one.support == 0 for one in found.scores):
        lines.append(
            f"without a sample: {empty} of {len(found.classes)} classes; each counts as 0 in the macro average"
        )
    if found.undecoded:
        lines.append(f"left out: {found.undecoded:,} samples that do not decode (see the warnings)")
    if found.other is not None:
        other = found.other
        lines.append(
            f"by the labels of {other.file}: top-1 {other.top1:.2f} %, top-5 {other.top5:.2f} %, {other.samples:,} "
            f"samples ({other.left_out:,} have no label there)"
        )
    return "\n".join(lines)


def _interval(bounds: tuple[float, float]) -> str:
    return f"({bounds[0]:.2f} – {bounds[1]:.2f})"


def _classes(found: Evaluation, *, whole: bool) -> str:
    title, shown = shown_classes(found.scores, [one.f1 for one in found.scores], whole=whole)
    rows = [(name, *numbers(scores)) for name, scores in zip(found.classes, found.scores, strict=True)]
    cells = [rows[i] for i in shown]
    cells += [(f"{name} average", *numbers(scores)) for name, scores in found.averages.items()]
    return align([(title, *HEAD), *cells])


def shown_classes(
    scores: Sequence[Scores], quality: Sequence[float], *, whole: bool
) -> tuple[str, list[int]]:
    """Which classes a table lists, by index, and its title: all, or the worst if these were too many.

    Args:
        scores: of each class.
        quality: of each class, F1 or average precision.
        whole: list all, however many.
    """
    if whole or len(scores) <= _MOST_CLASSES:
        return "by class", list(range(len(scores)))
    seen = [i for i, one in enumerate(scores) if one.support]
    worst = sorted(seen, key=lambda i: quality[i])[:_SHOWN]
    return f"the {len(worst)} worst of {len(seen)} classes with samples", worst


def numbers(scores: Scores) -> tuple[str, ...]:
    """Cells of a table under `HEAD`."""
    return f"{scores.precision:.4f}", f"{scores.recall:.4f}", f"{scores.f1:.4f}", f"{scores.support:,}"


def _pairs(found: Evaluation, most: int) -> str:
    rows = [
        (
            f"{found.classes[p.true]} → {found.classes[p.predicted]}",
            f"{p.samples:,}",
            f"{100 * p.share:.1f} %",
        )
        for p in found.pairs[:most]
    ]
    return align([("most confused: class → taken for", "samples", "of the class"), *rows])


def _slices(found: Evaluation) -> str:
    rows = []
    for one in found.slices:
        low, high = one.shorter_side
        side = f"{low} px" if low == high else f"{low} – {high} px"
        rows.append(
            (side, f"{one.samples:,}", f"{one.top1:.2f} %", _interval(one.interval), f"{one.top5:.2f} %")
        )
    return align([("by shorter side of the image", "samples", "top-1", "95 % interval", "top-5"), *rows])


def align(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as columns: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )
