"""What `python -m bench doctor` writes down: figures, medians, suggestions with their gains. JSON-able."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.bottleneck import Costs
from bench.measure import Series
from bench.remedies import Change

_WORTH = 1.03  # gain from which on a change is worth suggesting
_SURE, _PLAIN = 0.9, 1.1  # confidence to rely on, and the gain that must be sure without it


def medians(costs: Sequence[Costs]) -> Costs:
    """Costs whose every figure is the median over repeats."""
    names = [f.name for f in dataclasses.fields(Costs) if f.name not in ("cores", "shared")]
    middle = {name: median(getattr(one, name) for one in costs) for name in names}
    return Costs(**middle, cores=costs[0].cores, shared=costs[0].shared)


def suggestion(change: Change, tried: dict[str, Any] | None) -> dict[str, Any]:
    """A change, and whether it helps: if its gain is worth something and the interval lies above 1."""
    helps = None
    if tried is not None:
        gain = tried["gain"]
        # A few repeats make no interval to rely on: then only what is plain counts.
        least = 1.0 if gain["confidence"] >= _SURE else _PLAIN
        helps = bool(gain["low"] > least and gain["value"] > _WORTH)
    return {
        "how": change.how, "caution": change.caution, "rests_on": change.rests_on,
        "can_be_tried": change.setup is not None, "helps": helps, **rounded(tried or {}),
    }  # fmt: skip


def figures(one: Series) -> dict[str, Any]:
    """Every repeat of a stage."""
    return {
        "name": one.name, "title": one.title,
        "images_per_s": [round(value, 2) for value in one.images_per_s],
        "mb_per_s": [round(value, 4) for value in one.mb_per_s],
        "cpu_s_per_1000": [round(value, 3) for value in one.cpu_s],
        "step_ms": [round(value, 3) for value in one.step_ms],
    }  # fmt: skip


def milliseconds(seconds: dict[str, float]) -> dict[str, Any]:
    """Seconds in milliseconds."""
    return rounded({name: 1000 * value for name, value in seconds.items()})


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Floats with six significant digits, in nested dictionaries, too."""

    def one(value: Any) -> Any:
        if isinstance(value, dict):
            return rounded(value)
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return {name: one(value) for name, value in values.items()}
