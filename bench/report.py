"""A throughput record as a table, a sentence and a picture."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.intervals import median_interval
from shard.errors import FeedlineError
from train.whole import whole


def table(record: dict[str, Any]) -> str:
    """Return the record as text: one line per stage, then the ratios."""
    head = ("", "images/s", "interval", "MB/s", "CPU s / 1,000", "step ms p50 / p95 / p99", "of its ceiling")
    rows = [head, *map(_row, record["stages"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rates = [stage["images_per_s"] for stage in record["stages"]]
    if rates:
        sure = median_interval(rates[0]).confidence
        lines.append(f"interval: holds the median with {100 * sure:.0f} %; {len(rates[0])} repeats")
    lines += ["", *ratio_lines(record)]
    for name, gpu in (record.get("gpu_by_stage") or {"real": record["gpu"]}).items():
        if gpu:
            lines.append(f"GPU, {name}: {_gpu_text(gpu)}")
    if record["peak_gpu_memory_gib"] is not None:
        lines.append(f"peak of allocated GPU memory: {record['peak_gpu_memory_gib']} GiB")
    lines.append(f"page cache: {record['settings'].get('page_cache', 'hot')}")
    if hint := record["settings"].get("page_cache_advice"):
        lines.append(hint)
    return "\n".join([*lines, "", verdict(record)])


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> list[str]:
    """Rows as lines, their cells flush right but for those of the columns `left`."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def ratio_lines(record: dict[str, Any]) -> list[str]:
    """Each ratio of a record with its interval; records of old have none."""
    intervals = record.get("ratio_intervals", {})
    lines = []
    for name, value in record["ratios"].items():
        one = intervals.get(name)
        between = f" ({one['low']:.3f} – {one['high']:.3f}, {one['confidence']:.0%})" if one else ""
        lines.append(f"{name}: {value:.3f}{between}")
    return lines


def _row(stage: dict[str, Any]) -> tuple[str, ...]:
    rate, megabytes = median_interval(stage["images_per_s"]), median(stage["mb_per_s"])
    times, share = stage.get("step_ms_percentiles"), stage.get("share_of_ceiling")
    return (
        stage["title"],
        f"{rate.value:,.0f}",
        f"{rate.low:,.0f} – {rate.high:,.0f}",
        f"{megabytes:,.0f}" if megabytes else "",
        f"{median(stage['cpu_s_per_1000']):.2f}",
        " / ".join(f"{times[p]:,.1f}" for p in ("p50", "p95", "p99")) if times else "",
        f"{share['value']:.2f} of {stage['ceiling']}" if share else "",
    )


def _gpu_text(gpu: dict[str, float]) -> str:
    units = {
        "utilisation_percent": "% of the time busy",
        "sm_utilisation_percent": "% of the SMs",
        "jpeg_utilisation_percent": "% of the JPEG engines",
        "memory_used_gib": "GiB in use",
        "power_w": "W",
        "images_per_joule": "images/J",
    }
    return ", ".join(f"{gpu[name]:g} {unit}" for name, unit in units.items() if name in gpu)


def verdict(record: dict[str, Any]) -> str:
    """Say in one sentence which stage limits, with the figures that show it."""
    rates = {stage["name"]: median(stage["images_per_s"]) for stage in record["stages"]}
    load, step, real = rates.get(record["default_loader"] or ""), rates.get("synthetic"), rates.get("real")
    if load is None or step is None:
        return "Which stage limits is not known: measure at least loader and synthetic."
    shared = record["settings"]["device"] == "cpu"
    cause = _loader_cause(
        rates, load, gpu=decodes_on_gpu(record["default_loader"], record["settings"]["device"])
    )
    if load < step:
        sentence = f"The loader limits: it gives {load:,.0f} images/s, the training step could take {step:,.0f}{cause}"
    elif real is not None and not shared and real < 0.95 * step:
        sentence = (
            f"The hand-over limits: loader ({load:,.0f} images/s) and training step ({step:,.0f}) are both faster "
            f"alone than together ({real:,.0f})"
        )
    else:
        sentence = (
            f"The training step limits: it takes {step:,.0f} images/s, the loader could give {load:,.0f}"
        )
    if shared and real is not None:
        sentence += (
            f"; on a CPU both share the cores, so a feed ratio of about {load / (load + step):.2f} is the best to "
            f"expect, and {record['ratios']['feed ratio (real / synthetic)']:.2f} was measured"
        )
    return sentence + "."


def decodes_on_gpu(name: str, device: str) -> bool:
    """Whether a stage decodes on the GPU: neither the CPU's decoding nor the copy of finished batches bounds it."""
    return name in ("dali", "loader_dali") and device != "cpu"


def _loader_cause(rates: dict[str, float], load: float, *, gpu: bool) -> str:
    """What limits the loader in its turn."""
    decode, read, copy = rates.get("decode"), rates.get("read"), rates.get("copy")
    if read is not None and read < 1.25 * load:
        return f", and reading limits the loader ({read:,.0f} images/s): use faster storage or smaller images"
    bounds = {
        "decoding": (decode, "use more cores or smaller images"),
        "the copy to the GPU": (copy, "decode on the GPU or use smaller images"),
    }
    near = [(rate, what, so) for what, (rate, so) in bounds.items() if rate is not None and load > 0.8 * rate]
    if near and not gpu:
        rate, what, so = min(near)
        return f", and {what} limits the loader (ceiling {rate:,.0f}): {so}"
    return ""


def picture(record: dict[str, Any], path: Path) -> None:
    """Draw the record as horizontal bars with the spread over repeats.

    Raises:
        FeedlineError: matplotlib is not installed.
    """
    stages = record["stages"][::-1]
    rates = [median(stage["images_per_s"]) for stage in stages]
    figure = new_figure(10, 1.6 + 0.5 * len(stages))
    axes = figure.subplots()
    # Reading is often a hundred times faster than the rest: on a linear axis it would hide everything else.
    limit = 1.3 * max([r for r, s in zip(rates, stages, strict=True) if s["name"] != "read"] or rates)
    colours = [_colour(stage["name"], record["default_loader"]) for stage in stages]
    axes.barh(range(len(stages)), [min(rate, limit) for rate in rates], color=colours, height=0.62)
    for y, (stage, rate) in enumerate(zip(stages, rates, strict=True)):
        low, high = min(stage["images_per_s"]), max(stage["images_per_s"])
        if rate <= limit:
            axes.plot([low, high], [y, y], color="#222222", linewidth=1.4, marker="|", markersize=7)
        beyond = " (off the scale)" if rate > limit else ""
        x, side = (high, "left") if rate <= limit else (limit, "right")
        axes.annotate(
            f"{rate:,.0f}{beyond}", (x, y), (6 if side == "left" else -6, 0), textcoords="offset points",
            va="center", ha=side, fontsize=10, color="#111111" if side == "left" else "white",
        )  # fmt: skip
    axes.set_yticks(range(len(stages)), [stage["title"] for stage in stages])
    axes.set_xlim(0, limit)
    axes.set_xlabel("images per second: median, with least and greatest of the repeats")
    axes.spines[["top", "right"]].set_visible(False)
    arch = record["settings"]["config"]["model"]["arch"]
    figure.suptitle(f"{machine(record['environment'])} · {arch}", fontsize=12)
    ratios = [f"{name} {value:.2f}" for name, value in record["ratios"].items()]
    lines = ["   ·   ".join(ratios[:3]), "   ·   ".join(ratios[3:])]
    axes.set_title("\n".join(line for line in lines if line), fontsize=9, color="#444444", loc="left")
    save(figure, path)


def machine(environment: dict[str, Any]) -> str:
    """The GPU that a record was made on, or the CPU."""
    gpu = environment["gpu"]
    return gpu["name"] if gpu else f"{environment['cpu']}, {environment['cores']} cores"


def new_figure(width: float, height: float) -> Any:
    """Empty figure of matplotlib, in inches, that belongs to no window.

    Raises:
        FeedlineError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with whole(path) as part:
        figure.savefig(part, dpi=130, format="png")


def require_matplotlib() -> None:
    """Raise FeedlineError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise FeedlineError("the picture needs matplotlib: pip install 'feedline[plot]'") from error


def _colour(name: str, default_loader: str | None) -> str:
    if name == default_loader:
        return "#1b6ca8"
    if name.startswith("loader"):
        return "#7fb2d6"
    return {"synthetic": "#c9a227", "real": "#2e8b57", "read": "#9a9a9a", "decode": "#9a9a9a"}.get(
        name, "#c5c5c5"
    )
