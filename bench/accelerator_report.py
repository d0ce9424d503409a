"""An accelerator record as text."""

from __future__ import annotations

from statistics import median
from typing import Any

from bench.report import aligned


def table(record: dict[str, Any]) -> str:
    """Return the record as text: what was emulated, a line per number of accelerators, and what it means."""
    one = record["accelerator"]
    lines = [
        f"{one['name']}: {1000 * one['step_s']:,.1f} ms per batch of {one['batch_size']} = {one['demand']:,.0f} "
        "images/s each",
        f"source: {one['source']}",
        "",
        *aligned([_HEAD, *map(_row, record["points"])]),
        "",
        verdict(record),
    ]
    if record["check"]:
        rows = aligned([_CHECK_HEAD, *map(_check_row, record["check"])])
        held = record["settings"]["check_held_images_per_s"]
        loader = f"the loader, held back to {held:,.0f} images/s" if held else "the loader's own rate"
        lines += ["", f"The emulation against min(1, X ÷ demand), X being {loader}:", *rows]
    return "\n".join(lines)


def verdict(record: dict[str, Any]) -> str:
    """Say in a sentence how many of these accelerators the node feeds."""
    demand, least = record["accelerator"]["demand"], record["settings"]["pass"]
    asked = next(p for p in record["points"] if p["accelerators"] == record["accelerators"])
    loader = median(asked["loader_images_per_s"])
    if record["feeds"] is None:
        state = "passes" if asked["passed"] else "does not pass"
        return f"AU {asked['au_interval']['value']:.1%} with {asked['accelerators']}: {state} at {least:.0%}."
    if record["feeds"] == 0:
        return (
            f"This node feeds no accelerator of this kind: its loader gives {loader:,.0f} images/s, which is "
            f"{loader / demand:.2f} of what one wants ({demand:,.0f})."
        )
    fed = next(p for p in record["points"] if p["accelerators"] == record["feeds"])
    text = f"{fed['au_interval']['value']:.1%} busy (pass: {least:.0%})"
    if record["feeds_at_least"]:
        return f"This node feeds at least {record['feeds']} of them, {text}; more were not tried (--most)."
    more = next(p for p in record["points"] if p["accelerators"] == record["feeds"] + 1)
    return (
        f"This node feeds {record['feeds']} of them, {text}; with {more['accelerators']} they are "
        f"{more['au_interval']['value']:.1%} busy. (From the loader's rate: {record['estimate']}.)"
    )


_HEAD = (
    "accelerators",
    "AU, median",
    "interval",
    "images/s",
    "wanted",
    "loader alone",
    "loader ÷ demand",
    "",
)
_CHECK_HEAD = ("demand ÷ loader", "AU", "predicted", "difference, points", "interval")


def _row(point: dict[str, Any]) -> tuple[str, ...]:
    interval, number = point["au_interval"], point["accelerators"]
    return (
        f"{number}",
        f"{interval['value']:.1%}",
        f"{interval['low']:.1%} – {interval['high']:.1%} ({interval['confidence']:.0%})",
        f"{median(point['images_per_s']):,.0f}",
        f"{point['demand']:,.0f}",
        f"{median(point['loader_images_per_s']):,.0f}",
        f"{point['predicted_au']:.1%}",
        "passes" if point["passed"] else "fails",
    )


def _check_row(one: dict[str, Any]) -> tuple[str, ...]:
    points = one["difference_points"]
    return (
        f"{one['demand_over_loader']:g}",
        f"{one['au']:.1%}",
        f"{one['predicted']:.1%}",
        f"{points['value']:+.1f}",
        f"{points['low']:+.1f} – {points['high']:+.1f} ({points['confidence']:.0%})",
    )
