"""What self-contained HTML pages are made of: tables that sort, bars, and the frame around them (train/web).

`python -m train report` and `python -m bench report` fill them. A page loads nothing: style, script and pictures stand
in it, and a content security policy keeps browsers from anything else.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import jinja2
from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table shows in one place.

    Attributes:
        text: what is read.
        number: what is sorted by; None: the text.
        spread: least and greatest of several values.
        values: the numbers behind it.
        link: anchor on the page.
    """

    text: str
    number: float | None = None
    spread: str = ""
    values: tuple[float, ...] = ()
    link: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """Head of a column."""

    label: str
    numeric: bool
    key: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; every row is as long as `columns`. Comparable: a column's figures have one unit."""

    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    comparable: bool = True


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar; width, whisker and the label's room in percent of the chart's width. Clipped: longer than the chart."""

    label: str
    text: str
    tip: str
    width: float
    low: float | None
    high: float | None
    clipped: bool
    room: int = 76


@dataclass(frozen=True, slots=True)
class Chart:
    """Horizontal bars."""

    caption: str
    bars: list[Bar] = field(default_factory=list)
    note: str = ""


def cell(value: Any) -> Cell:
    """A value as it is shown: several numbers as their median."""
    if value is None:
        return Cell("")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, float) and not math.isfinite(value):
        return Cell(str(value))  # nothing to sort or draw
    if isinstance(value, int | float):
        return Cell(number_text(value), float(value), values=(float(value),))
    if isinstance(value, list):
        if value and all(map(_is_number, value)):
            middle = median(value)
            low, high = number_text(min(value)), number_text(max(value))
            spread = f"{low} – {high}" if low != high else ""
            return Cell(number_text(middle), float(middle), spread, tuple(map(float, value)))
        return Cell(", ".join(str(one) for one in value))
    return Cell(str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number_text(value: float) -> str:
    """Four significant digits, no digit of a whole number left out."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


@functools.cache
def template(package: str, name: str) -> jinja2.Template:
    """Template `name` in the folder "web" of `package`, which extends base.html and imports parts.html of train/web.

    Everything put into it is escaped, but for our own files, which `asset` takes as they are: browsers read what stands
    in style and script elements without unescaping it.
    """
    loader = jinja2.ChoiceLoader(
        [jinja2.PackageLoader(one, "web") for one in dict.fromkeys((package, "train"))]
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=loader)
    environment.globals["asset"] = lambda asset: Markup(loader.get_source(environment, asset)[0].rstrip("\n"))
    return environment.get_template(name)
