"""Tables and charts out of anything that JSON can hold: for records of kinds that the page does not know."""

from __future__ import annotations

from typing import Any

from train.page import Bar, Cell, Chart, Column, Table, cell

_LABELS = {
    "images_per_s": "images/s",
    "mb_per_s": "MB/s",
    "cpu_s_per_1000": "CPU s / 1,000 images",
    "step_ms": "ms / step",
    "ours_over_peer": "ours ÷ it",
    "au": "accelerator utilisation",
    "gain.value": "gain",
}
_NAMES = ("title", "name", "reader", "how")  # columns that say what a row is about, best first
_CHARTED = ("images_per_s", "ours_over_peer", "gain.value", "au", "speedup", "efficiency")
_MOST_BARS, _MOST_CHARTS, _DEEPEST = 40, 2, 1
_CLIP = 4  # times the next smaller one: a bar that would hide all others
_ONE_UNIT = ("ratios",)  # objects whose figures have one unit


def tables(results: dict[str, Any], prefix: str = "") -> list[Table]:
    """Tables of everything in a record but plain values: lists of objects, objects of objects, objects."""
    found = []
    for key, value in results.items():
        caption = label(prefix + key)
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            found.append(_rows(caption, value))
        elif isinstance(value, list) and value:
            found.append(_rows(caption, [{"value": one} for one in value]))
        elif isinstance(value, dict) and value:
            nested = [one for one in value.values() if isinstance(one, dict)]
            if len(nested) == len(value):
                found.append(_rows(caption, [{"name": name, **one} for name, one in value.items()]))
            else:
                plain = flat(value)
                found.append(_pairs(caption, plain, key in _ONE_UNIT or key.endswith("_per_image")))
    return [table for table in found if table.columns and table.rows]


def _rows(caption: str, entries: list[dict[str, Any]]) -> Table:
    rows = [flat(entry) for entry in entries]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = [key for key in keys if any(row.get(key) not in (None, "", [], {}) for row in rows)]
    named = next((name for name in _NAMES if name in keys), None)
    if named is not None:
        keys = [named, *(key for key in keys if key != named and (key != "name" or named != "title"))]
    # What comes first in an object without a name usually numbers it: processes, accelerators, a batch size.
    keys[1:] = sorted(keys[1:], key=lambda key: _place(key, [row.get(key) for row in rows]))
    cells = [[cell(row.get(key)) for key in keys] for row in rows]
    columns = [column(key, any(row[i].number is not None for row in cells)) for i, key in enumerate(keys)]
    return Table(caption, columns, cells)


def _place(key: str, values: list[Any]) -> tuple[int, int]:
    """Where a column stands: what is charted first, then repeats, numbers, text, and nested things last."""
    if key in _CHARTED:
        return 0, _CHARTED.index(key)
    found = [cell(value) for value in values]
    kinds = (any(one.spread for one in found), any(one.number is not None for one in found), "." not in key)
    return 1 + kinds.index(True) if True in kinds else 4, 0


def _pairs(caption: str, values: dict[str, Any], comparable: bool) -> Table:
    rows = [[Cell(label(name)), cell(value)] for name, value in values.items()]
    numeric = any(row[1].number is not None for row in rows)
    columns = [Column("what", False, "name"), Column("value", numeric, "value")]
    return Table(caption, columns, rows, comparable)


def flat(value: Any, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Nested objects as one, keys joined by dots; what lies deeper than a table can show is left to the record."""
    if not isinstance(value, dict):
        return {}
    result: dict[str, Any] = {}
    for key, one in value.items():
        if isinstance(one, dict):
            if depth < _DEEPEST or prefix == "config.":
                result.update(flat(one, f"{prefix}{key}.", depth + 1))
        elif not isinstance(one, list):
            result[f"{prefix}{key}"] = one
        elif not any(isinstance(part, dict | list) for part in one):
            # Repeats stand beside a name; lists further in are shapes, or mean and deviation: no median of these.
            result[f"{prefix}{key}"] = [str(part) for part in one] if prefix else one
    return result


def column(key: str, numeric: bool) -> Column:
    """Head of the column of a record's key."""
    return Column(label(key), numeric, key)


def label(key: str) -> str:
    """A record's key for people."""
    return _LABELS.get(key, key.replace("_", " ").replace(".", " · "))


def charts(table: Table) -> list[Chart]:
    """Bars of the columns that matter most, at most two; none for tables that say nothing in bars."""
    if not table.comparable or not 2 <= len(table.rows) <= _MOST_BARS:
        return []
    numeric = [i for i, one in enumerate(table.columns) if one.numeric and i]
    chosen = [i for i in numeric if table.columns[i].key in _CHARTED]
    names = [row[0].text for row in table.rows]
    # Else rows are numbered by something, or of a kind, and columns are anything.
    if not table.columns[0].numeric and len(set(names)) == len(names):
        chosen = chosen or [i for i in numeric if any(row[i].spread for row in table.rows)][:1]
        chosen = chosen or [i for i in numeric if len({row[i].number for row in table.rows}) > 1][:1]
    made = [_chart(table, i) for i in chosen[:_MOST_CHARTS]]
    return [chart for chart in made if len(chart.bars) > 1]


def _chart(table: Table, i: int) -> Chart:
    rows = [row for row in table.rows if row[i].number is not None]
    # Nothing below zero is drawn; a chart of such figures would have to lie.
    if any(min(row[i].values) < 0 for row in rows):
        return Chart("")
    top = _top(sorted(row[i].number or 0.0 for row in rows))
    reach = max([max(row[i].values) for row in rows if (row[i].number or 0.0) <= top], default=top)
    limit = max(top, min(reach, 2 * top)) or 1.0
    bars = [
        _bar(name, row[i], table.columns[i].label, limit)
        for name, row in zip(_names(table, rows, i), rows, strict=True)
    ]
    note = "» longer than the chart" if any(bar.clipped for bar in bars) else ""
    pairs = table.columns[i].key == "value"
    return Chart(table.caption if pairs else f"{table.caption}: {table.columns[i].label}", bars, note)


def _names(table: Table, rows: list[list[Cell]], charted: int) -> list[str]:
    """What rows are called: by their first column, and by a number that tells apart those of one name."""
    first = f"{table.columns[0].label} " if table.columns[0].numeric else ""
    names = [first + row[0].text for row in rows]
    if len(set(names)) == len(names):
        return names
    for i, one in enumerate(table.columns):
        if i not in (0, charted) and one.numeric and len({row[i].number for row in rows}) == len(rows):
            return [f"{name}, {one.label} {row[i].text}" for name, row in zip(names, rows, strict=True)]
    return names


def _top(ordered: list[float]) -> float:
    """The greatest figure, or the one below a single giant that would hide all others."""
    if len(ordered) > 3 and ordered[-1] > _CLIP * ordered[-2] > 0:
        return ordered[-2]
    return ordered[-1] if ordered else 0.0


def _bar(name: str, one: Cell, unit: str, limit: float) -> Bar:
    number, clipped = one.number or 0.0, (one.number or 0.0) > limit

    def percent(value: float) -> float:
        return round(100 * min(value, limit) / limit, 2)

    several = len(one.values) > 1
    lines = [name, f"{unit}: {one.text}"]
    if several:
        lines.append(f"least – greatest: {one.spread} ({len(one.values)} repeats)")
    return Bar(
        label=name,
        text=one.text,
        tip="\n".join(lines),
        width=percent(number),
        low=percent(min(one.values)) if several and not clipped else None,
        high=percent(max(one.values)) if several and not clipped else None,
        clipped=clipped,
    )
