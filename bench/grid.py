"""`python -m bench throughput` over resolutions, batch sizes and backends: a record per cell, one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any, Literal

from bench.report import aligned
from bench.throughput import Plan

Backend = Literal["auto", "dali", "torch"]


def cells(
    plan: Plan, resolutions: Sequence[int], batch_sizes: Sequence[int], backends: Sequence[Backend]
) -> Iterator[tuple[str, Plan]]:
    """Name and plan of every cell; an empty axis stays at the plan's value."""
    images = plan.config.input
    axes = (
        resolutions or [images.size],
        batch_sizes or [images.batch_size],
        backends or [images.loader_backend],
    )
    for size, batch_size, backend in product(*axes):
        changed = replace(images, size=size, batch_size=batch_size, loader_backend=backend)
        config = replace(plan.config, input=changed)
        yield f"{size}px-batch{batch_size}-{backend}", replace(plan, config=config)


def table(records: dict[str, dict[str, Any]]) -> str:
    """One line per cell: images/s of every stage, and the feed ratio."""
    names = list(dict.fromkeys(name for record in records.values() for name in _rates(record)))
    head = ["", *names, "feed ratio"]
    rows = [head]
    for cell, record in records.items():
        rates, feed = _rates(record), record["ratios"].get("feed ratio (real / synthetic)")
        figures = [f"{rates[name]:,.0f}" if name in rates else "" for name in names]
        rows.append([cell, *figures, f"{feed:.2f}" if feed is not None else ""])
    return "\n".join(["images/s, medians", *aligned(rows, left=(0,))])


def _rates(record: dict[str, Any]) -> dict[str, float]:
    """Median rate by stage; "loader" whichever backend it has."""
    default = record["default_loader"]
    return {
        "loader" if stage["name"] == default else stage["name"]: median(stage["images_per_s"])
        for stage in record["stages"]
    }
