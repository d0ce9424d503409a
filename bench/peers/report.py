"""A peers record as a table, a sentence and a picture."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from bench.peers import OURS
from bench.report import aligned, machine, new_figure, save

_OURS, _OTHERS, _DIFFERENT = "#1b6ca8", "#c5c5c5", "#e3c9a8"


def table(record: dict[str, Any]) -> str:
    """Return the record as text: a line per peer, fastest first, then what differs, versions and who is left out."""
    peers = ranked(record)
    augmented = record["settings"]["augment"] is not None
    head = ["", "images/s", "min – max", "CPU s / 1,000", "ours ÷ it", "antialias", "output"]
    head += ["operations"] if augmented else []
    rows = [head]
    for peer in peers:
        rates, operations = peer["images_per_s"], peer["operations_per_image"]
        row = [
            peer["title"] + (" *" if peer["differences"] else ""),
            f"{median(rates):,.0f}",
            f"{min(rates):,.0f} – {max(rates):,.0f}",
            f"{median(peer['cpu_s_per_1000']):.2f}",
            "" if peer["name"] == OURS else f"{peer['ours_over_peer']:.2f}{_between(peer)}",
            "yes" if peer["antialias"] else "no",
            peer["output"],
        ]
        rows.append(row + (["" if operations is None else f"{operations:.2f}"] if augmented else []))
    lines = aligned(rows, left=(0, 6))  # columns of text
    lines += ["", *(f"* {p['title']}: {'; '.join(p['differences'])}" for p in peers if p["differences"])]
    lines += [f"{p['title']}: {versions(p)}{'; ' + p['note'] if p['note'] else ''}" for p in peers]
    lines += ["", *(f"left out: {p['title']}: {p['why']}" for p in record["left_out"])]
    return "\n".join([*lines, verdict(record)])


def ranked(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The peers, fastest first: by their ratios to ours, as they were not measured at the same time."""
    return sorted(record["peers"], key=lambda peer: float(peer["ours_over_peer"]))


def versions(peer: dict[str, Any]) -> str:
    """The versions of a peer's packages as text."""
    return ", ".join(f"{name} {version}" for name, version in peer["versions"].items() if version)


def verdict(record: dict[str, Any]) -> str:
    """Say who is first, by the ratios."""
    others = [peer for peer in record["peers"] if peer["name"] != OURS]
    if not others:
        return "No peer was measured."
    ahead = [p for p in others if p["ours_over_peer"] < 1]
    if ahead:
        names = ", ".join(f"{p['title']} ({1 / p['ours_over_peer']:.2f} × ours)" for p in ahead)
        return f"Not first: ahead of ours {'is' if len(ahead) == 1 else 'are'} {names}."
    second = min(others, key=lambda p: p["ours_over_peer"])
    surely = second.get("ours_over_peer_interval", {}).get("low", 1.0) >= 1
    first = "Ours is first" if surely else "Ours is first, but not surely"
    return f"{first}: {second['ours_over_peer']:.2f} ×{_between(second)} the next, {second['title']}."


def _between(peer: dict[str, Any]) -> str:
    """The interval of a ratio; records of old have none."""
    one = peer.get("ours_over_peer_interval")
    return f" ({one['low']:.2f} – {one['high']:.2f})" if one else ""


def picture(record: dict[str, Any], path: Path) -> None:
    """Draw the record as horizontal bars with the spread over repeats, fastest on top.

    Raises:
        FeedlineError: matplotlib is not installed.
    """
    peers = ranked(record)[::-1]
    rates = [median(peer["images_per_s"]) for peer in peers]
    highest = max(max(peer["images_per_s"]) for peer in peers)
    figure = new_figure(10, 1.7 + 0.46 * len(peers))
    axes = figure.subplots()
    axes.barh(range(len(peers)), rates, color=[_colour(peer) for peer in peers], height=0.62)
    for y, (peer, rate) in enumerate(zip(peers, rates, strict=True)):
        low, high = min(peer["images_per_s"]), max(peer["images_per_s"])
        axes.plot([low, high], [y, y], color="#222222", linewidth=1.4, marker="|", markersize=7)
        behind = "" if peer["name"] == OURS else f"   (ours ÷ it: {peer['ours_over_peer']:.2f})"
        axes.annotate(
            f"{rate:,.0f}{behind}", (high, y), (6, 0), textcoords="offset points", va="center", fontsize=10,
            color="#111111",
        )  # fmt: skip
    labels = [
        f"{p['title']}{' *' if p['differences'] else ''}\n{_main_version(p, record['environment'])}"
        for p in peers
    ]
    axes.set_yticks(range(len(peers)), labels, fontsize=8.5)
    axes.set_xlim(0, 1.22 * highest)
    axes.set_xlabel("images per second: median, with least and greatest of the repeats")
    axes.spines[["top", "right"]].set_visible(False)
    settings = record["settings"]
    figure.suptitle(machine(record["environment"]), fontsize=12)
    work = f"random resized crop {settings['size']} px, flip"
    work += f", {settings['augment']}" if settings["augment"] else ""
    different = (
        "   ·   * not quite the same work, see the table" if any(p["differences"] for p in peers) else ""
    )
    axes.set_title(
        f"{work}   ·   batches of {settings['batch_size']}   ·   {settings['threads']} threads or workers{different}",
        fontsize=9, color="#444444", loc="left",
    )  # fmt: skip
    save(figure, path)


def _main_version(peer: dict[str, Any], environment: dict[str, Any]) -> str:
    if peer["name"] == OURS:
        return f"commit {environment['commit']}" if environment["commit"] else ""
    name, version = next(iter(peer["versions"].items()))
    return f"{name} {version}"


def _colour(peer: dict[str, Any]) -> str:
    if peer["name"] == OURS:
        return _OURS
    return _DIFFERENT if peer["differences"] else _OTHERS
