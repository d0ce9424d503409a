"""Curves as SVG paths: scaled, thinned and with round numbers at the axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from train.page import number_text

_MOST_POINTS, _MOST_BANDS = 300, 60
_DOTTED = 25  # series of fewer points show them
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """A curve: points (x, y), x rising, all finite. Colour: number of it in run.css."""

    name: str
    points: list[Point]
    colour: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """A number at an axis, percent of its length from where it begins."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A series in a plot of 1000 × 1000, y downwards; `dots` has its points, where they are few."""

    name: str
    colour: int
    path: str
    dots: str


@dataclass(frozen=True, slots=True)
class Band:
    """A part of the x axis, 0 … 1000, and what the series are there."""

    x: float
    width: float
    tip: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves over one x axis. Label: what it shows, in words, for those who do not see it."""

    caption: str
    x_label: str
    label: str
    note: str = ""
    curves: list[Curve] = field(default_factory=list)
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)


def plot(
    caption: str,
    series: Sequence[Series],
    *,
    x_label: str,
    unit: str = "",
    note: str = "",
    zero: bool = True,
) -> Plot | None:
    """Draw series; those without points are left out, and None is returned if there is nothing to draw.

    Args:
        caption: what is drawn.
        series: the curves.
        x_label: what x is, such as "epoch".
        unit: of y, such as " %".
        note: a sentence below.
        zero: whether the y axis begins at 0.
    """
    shown = [Series(one.name, thinned(one.points), one.colour) for one in series if one.points]
    if not shown:
        return None
    xs = [x for one in shown for x, _ in one.points]
    ys = [y for one in shown for _, y in one.points]
    left, right = min(0.0, *xs), max(xs)
    y_marks = round_numbers(0.0 if zero and min(ys) >= 0 else min(ys), max(ys))
    low, high = y_marks[0], y_marks[-1]
    wide = (right - left) or 1.0

    def place(point: Point) -> str:
        return f"{1000 * (point[0] - left) / wide:.1f} {1000 * (high - point[1]) / (high - low):.1f}"

    return Plot(
        caption=caption,
        x_label=x_label,
        label=f"{caption}. " + "; ".join(_in_words(one, unit) for one in shown),
        note=note,
        curves=[
            Curve(
                one.name,
                one.colour,
                "M" + "L".join(map(place, one.points)),
                "".join(f"M{place(point)}h0" for point in one.points) if len(one.points) <= _DOTTED else "",
            )
            for one in shown
        ],
        x_ticks=[
            Tick(round(100 * (x - left) / wide, 2), number_text(x))
            for x in round_numbers(left, right, whole=True)
            if left <= x <= right
        ],
        y_ticks=[Tick(round(100 * (y - low) / (high - low), 2), number_text(y) + unit) for y in y_marks],
        bands=_bands(shown, left, wide, x_label, unit),
    )


def _in_words(one: Series, unit: str) -> str:
    first, last = one.points[0][1], one.points[-1][1]
    return f"{one.name} from {number_text(first)}{unit} to {number_text(last)}{unit}"


def _bands(shown: list[Series], left: float, wide: float, x_label: str, unit: str) -> list[Band]:
    count = min(_MOST_BANDS, max(len(one.points) for one in shown))
    bands = []
    for number in range(count):
        middle = left + wide * (number + 0.5) / count
        nearest = [min(one.points, key=lambda point: abs(point[0] - middle)) for one in shown]
        lines = [f"{x_label} {number_text(round(nearest[0][0], 2))}"]
        lines += [f"{one.name}: {number_text(y)}{unit}" for one, (_, y) in zip(shown, nearest, strict=True)]
        bands.append(Band(round(1000 * number / count, 1), round(1000 / count, 1), "\n".join(lines)))
    return bands


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most `most` points: means of neighbours, as many in each but the last."""
    each = -(-len(points) // most)
    groups = [points[i : i + each] for i in range(0, len(points), each)]
    return [
        (math.fsum(x for x, _ in group) / len(group), math.fsum(y for _, y in group) / len(group))
        for group in groups
    ]


def round_numbers(low: float, high: float, *, whole: bool = False, about: int = 5) -> list[float]:
    """Rising multiples of 1, 2 or 5 × 10^n, about `about` of them, the first ≤ low and the last ≥ high.

    Args:
        low: finite.
        high: ≥ low.
        whole: of 1 at least.
        about: how many.
    """
    span, scale = high - low, max(abs(low), abs(high))
    if span <= 1e-9 * scale or span < 1e-100:  # no room for numbers between them
        span = scale if scale > 1e-100 else 1.0
    step = 10.0 ** math.floor(math.log10(span / about))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= about)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, max(last, first + 1) + 1)]
