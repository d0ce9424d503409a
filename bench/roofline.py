"""The stages as ceilings over one another, on a logarithmic scale, and what training reaches under the lowest.

After the roofline model (Williams, Waterman, Patterson, CACM 2009): what is attainable is the minimum of what its
parts can do, so the narrowest stage is the one to widen, and the gap under the roof is what none of them explains.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import decodes_on_gpu, new_figure, save

_NARROW, _ROOF, _REAL, _PLAIN = "#c0392b", "#1b3a57", "#2e8b57", "#9fb3c4"
_ORDER = ("read", "decode", "loader", "copy", "synthetic")


def roof(record: dict[str, Any]) -> dict[str, float]:
    """Images/s that get through up to each stage, in the order of the pipeline: the least of it and those before.

    On a CPU, loader and step share the cores: L and S alone let L S / (L + S) through together, the roof of `real`.
    """
    rates = _rates(record)
    found: dict[str, float] = {}
    least = float("inf")
    for name, rate in rates.items():
        if name != "real":
            found[name] = least = min(least, rate)
    if "real" in rates:
        loader, step = rates.get(record["default_loader"] or ""), rates.get("synthetic")
        if record["settings"]["device"] == "cpu" and loader is not None and step is not None:
            least = min(least, loader * step / (loader + step))
        found["real"] = least
    return found


def narrowest(record: dict[str, Any]) -> str | None:
    """Name of the stage with the least images/s, real training apart; None where nothing else was measured."""
    rates = {name: rate for name, rate in _rates(record).items() if name != "real"}
    return min(rates, key=lambda name: rates[name], default=None)


def roofline(record: dict[str, Any], path: Path) -> None:
    """Draw the picture.

    Raises:
        FeedlineError: matplotlib is not installed.
    """
    rates, through, least = _rates(record), roof(record), narrowest(record)
    titles = {stage["name"]: stage["title"] for stage in record["stages"]}
    figure = new_figure(1.5 + 1.75 * max(3, len(rates)), 5)
    axes = figure.subplots()
    axes.set_yscale("log")
    low = min([*rates.values(), *through.values()]) / 2.5
    for x, (name, rate) in enumerate(rates.items()):
        colour = _NARROW if name == least else _REAL if name == "real" else _PLAIN
        axes.bar(x, rate - low, bottom=low, width=0.62, color=colour, alpha=0.9 if colour != _PLAIN else 0.55)
        share = f"\n{rate / through['real']:.0%} of the roof" if name == "real" else ""
        axes.annotate(
            f"{rate:,.0f}{share}", (x, rate), (0, 5), textcoords="offset points", ha="center", va="bottom",
            fontsize=10, fontweight="bold" if colour != _PLAIN else "normal", color="#111111",
        )  # fmt: skip
    steps = list(through.values())
    for x, value in enumerate(steps):
        label = "roof: what gets through up to here" if x == 0 else None
        axes.plot([x - 0.5, x + 0.5], [value, value], color=_ROOF, linewidth=2.2, label=label)
    for x, (before, after) in enumerate(pairwise(steps)):
        axes.plot([x + 0.5, x + 0.5], [before, after], color=_ROOF, linewidth=2.2)
    axes.set_xticks(range(len(rates)), [titles[name].replace(", ", ",\n") for name in rates], fontsize=9)
    axes.set_xlim(-0.6, len(rates) - 0.4)
    axes.set_ylim(low, max(rates.values()) * 2.5)
    axes.set_ylabel("images per second, logarithmic")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=False)
    if least is not None:
        axes.set_title(f"narrowest: {titles[least]}, {rates[least]:,.0f} images/s", color=_NARROW, loc="left")
    save(figure, path)


def _rates(record: dict[str, Any]) -> dict[str, float]:
    """Median rates in the order of the pipeline, of the default loader alone, real training last."""
    rates = {stage["name"]: median(stage["images_per_s"]) for stage in record["stages"]}
    loader = record["default_loader"]
    apart = ("decode", "copy") if decodes_on_gpu(loader or "", record["settings"]["device"]) else ()
    names = [loader if name == "loader" else name for name in (*_ORDER, "real") if name not in apart]
    return {name: rates[name] for name in names if name is not None and name in rates}
