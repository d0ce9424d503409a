"""A scaling record as text and as a picture."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from bench.report import aligned, machine, new_figure, save
from bench.scaling.law import Law
from bench.scaling.network import Network

_MEASURED, _LAW, _IDEAL, _SIMULATED = "#1b6ca8", "#c9772b", "#9a9a9a", ("#2e8b57", "#8a4fa3")


def table(record: dict[str, Any]) -> str:
    """Return the record as text: a line per count, each with its kind, then the laws and what they assume."""
    settings = record["settings"]
    unit = settings["over"]
    rows: list[tuple[str, ...]] = [(unit, "images/s", "speed-up", "interval", "efficiency", "kind")]
    one = median(record["points"][0]["images_per_s"])
    for point in record["points"]:
        gain, n = point["speedup"], point["count"]
        between = f"{gain['low']:.2f} – {gain['high']:.2f} ({gain['confidence']:.0%})"
        rate = f"{point['interval']['value']:,.0f}"
        rows.append((f"{n}", rate, f"{gain['value']:.2f}", between, f"{gain['value'] / n:.0%}", "measured"))
    for ahead in record["extrapolated"]:
        n, value = ahead["count"], ahead["value"]
        rows.append(
            (
                f"{n}",
                "" if value is None else f"{value * one:,.0f}",
                "" if value is None else f"{value:.2f}",
                f"{ahead['low']:.2f} – {ahead['high']:.2f} ({ahead['confidence']:.0%})",
                f"{ahead['low'] / n:.0%} – {ahead['high'] / n:.0%}" if value is None else f"{value / n:.0%}",
                "extrapolated",
            )
        )
    lines = [
        f"{settings['work']}, {settings['mode']} scaling over {unit}",
        "",
        *aligned(rows),
        "",
        law_text(record),
    ]
    if record["network"] is not None:
        network = record["network"]
        lines += [
            f"All-reduce by {network['backend']}: {1e6 * network['alpha_s']:,.1f} µs per message, "
            f"{_gb_per_s(network['beta_s'])}; the model is off by up to {network['worst_relative_error']:.0%}."
        ]
    for scenario in record["simulated"]:
        lines += ["", *_scenario(scenario)]
    return "\n".join(lines)


def law_text(record: dict[str, Any]) -> str:
    """Say what the fitted law is, or why there is none."""
    law = record["law"]
    if law is None:
        return "Only one count was measured: nothing to fit."
    if not law["determined"]:
        low, high = law["coherence_only"], law["contention_only"]
        return (
            "One count above 1 was measured, which cannot determine the two parameters of the universal scalability "
            "law. "
            f"Assumed: between all loss by coherence (sigma 0, kappa {low['kappa']:.4f}: pessimistic) and all by "
            f"contention (sigma {high['sigma']:.4f}, kappa 0: optimistic)."
        )
    peak = "" if law["peak"] is None else f"; greatest throughput at {law['peak']:.1f}"
    return (
        f"Universal scalability law: sigma {law['sigma']:.4f} (contention), kappa {law['kappa']:.5f} "
        f"(coherence){peak}. Intervals of what is extrapolated: bootstrap over repeats."
    )


def _scenario(scenario: dict[str, Any]) -> list[str]:
    head = f"SIMULATED, not measured: {scenario['name']}"
    network = scenario["network"]
    about = (
        f"all-reduce of {scenario['gradient_bytes'] / 1e6:,.1f} MB in a ring, {1e6 * network['alpha_s']:,.1f} µs per "
        f"message, {_gb_per_s(network['beta_s'])}; {scenario['assumed']}"
    )
    rows: list[tuple[str, ...]] = [
        ("ranks", "all-reduce, ms", "speed-up, no overlap – full overlap", "images/s", "kind")
    ]
    rows += [
        (
            f"{p['count']}",
            f"{1e3 * p['all_reduce_s']:,.1f}",
            f"{p['low']:.2f} – {p['high']:.2f}",
            f"{p['images_per_s_low']:,.0f} – {p['images_per_s_high']:,.0f}",
            "simulated",
        )
        for p in scenario["points"]
    ]
    return [head, about, *aligned(rows)]


def _gb_per_s(beta_s: float) -> str:
    return f"{1e-9 / beta_s:,.2f} GB/s" if beta_s else "no limit of bandwidth seen"


def picture(record: dict[str, Any], path: Path) -> None:
    """Draw speed-ups over counts, and the all-reduces where there are some.

    Raises:
        FeedlineError: matplotlib is not installed.
    """
    panels = 2 if record["all_reduces"] else 1
    figure = new_figure(7.5 * panels, 5.6)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_speedups(axes[0], record)
    if record["all_reduces"]:
        _draw_all_reduces(axes[1], record)
    settings = record["settings"]
    arch = f"{settings['config']['model']['arch']}, " if settings["over"] != "threads" else ""
    images = settings["config"]["input"]
    work = f"{settings['work']}, {arch}{images['size']} px, batch {images['batch_size']}, {settings['mode']}"
    figure.suptitle(f"{machine(record['environment'])} · {work}", fontsize=11)
    save(figure, path)


def _draw_speedups(axes: Any, record: dict[str, Any]) -> None:
    points = record["points"]
    counts = [p["count"] for p in points]
    ahead = record["extrapolated"]
    last = max([*counts, *(p["count"] for p in ahead)])
    axes.plot([1, last], [1, last], color=_IDEAL, linestyle=":", label="ideal")
    law = record["law"]
    smooth = [1 + i * (last - 1) / 100 for i in range(101)]
    if law is not None and law["determined"]:
        fitted = Law(law["sigma"], law["kappa"])
        axes.plot(
            smooth, [fitted.speedup(n) for n in smooth], color=_LAW, label="universal scalability law, fitted"
        )
    elif law is not None:
        worst, best = (Law(**law[name]) for name in ("coherence_only", "contention_only"))
        axes.fill_between(
            smooth, [worst.speedup(n) for n in smooth], [best.speedup(n) for n in smooth], color=_LAW, alpha=0.18,
            linewidth=0, label="law through two points: between its two extremes",
        )  # fmt: skip
    for p in ahead:
        label = "extrapolated, with its interval" if p is ahead[0] else None
        axes.plot([p["count"]] * 2, [p["low"], p["high"]], color=_LAW, marker="_", markersize=9, label=label)
    for scenario, colour in zip(record["simulated"], _SIMULATED, strict=False):
        x = [p["count"] for p in scenario["points"]]
        low, high = ([p[end] for p in scenario["points"]] for end in ("low", "high"))
        name = f"SIMULATED: {scenario['name']}"
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, low, color=colour, linestyle="--", marker="x", markersize=5, label=name)
        axes.plot(x, high, color=colour, linestyle="--", linewidth=0.8)
    gains = [p["speedup"] for p in points]
    values = [g["value"] for g in gains]
    errors = [[g["value"] - g["low"] for g in gains], [g["high"] - g["value"] for g in gains]]
    axes.errorbar(
        counts,
        values,
        errors,
        color=_MEASURED,
        fmt="o",
        capsize=4,
        zorder=5,
        label="measured, interval of the median",
    )
    one = median(points[0]["images_per_s"])
    axes.set_title(f"1 = {one:,.0f} images/s", fontsize=9, color="#444444", loc="left")
    _log2(axes, sorted({*counts, *(p["count"] for p in ahead)}))
    axes.set_xlabel(record["settings"]["over"])
    axes.set_ylabel("speed-up")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _log2(axes: Any, ticks: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [str(n) for n in ticks])
        axis.set_minor_locator(_none())


def _none() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _draw_all_reduces(axes: Any, record: dict[str, Any]) -> None:
    network = record["network"]
    model = Network(network["alpha_s"], network["beta_s"])
    ranks = sorted({p["ranks"] for p in record["all_reduces"]})
    for i, n in enumerate(ranks):
        mine = [p for p in record["all_reduces"] if p["ranks"] == n]
        sizes = [p["size_bytes"] for p in mine]
        colour = ("#1b6ca8", "#2e8b57", "#8a4fa3", "#c9772b")[i % 4]
        axes.plot(sizes, [1e3 * p["seconds"] for p in mine], "o", color=colour, label=f"measured, {n} ranks")
        smooth = [sizes[0] * (sizes[-1] / sizes[0]) ** (i / 100) for i in range(101)]
        axes.plot(
            smooth,
            [1e3 * model.all_reduce(n, s) for s in smooth],
            color=colour,
            linewidth=1,
            label=f"model, {n} ranks",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [2**k for k in (12, 16, 20, 24)]
    axes.xaxis.set_ticks(ticks, ["4 KiB", "64 KiB", "1 MiB", "16 MiB"])
    axes.set_xlabel("bytes of an all-reduce")
    axes.set_ylabel("milliseconds")
    axes.set_title(
        f"{network['backend']}: {1e6 * network['alpha_s']:,.0f} µs per message, {_gb_per_s(network['beta_s'])}",
        fontsize=9, color="#444444", loc="left",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
