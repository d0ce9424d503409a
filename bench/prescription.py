"""A doctor's record in plain words."""

from __future__ import annotations

from statistics import median
from typing import Any

_WORDS = {
    "storage": "The storage limits this training",
    "decode": "Decoding limits this training",
    "augment": "Augmentation limits this training",
    "host-to-device": "Copying to the device limits this training",
    "model": "The model limits this training",
}


def prescription(record: dict[str, Any]) -> str:
    """What limits, the figures that show it, and what to change."""
    return "\n".join([*summary(record), "", *_stages(record), "", *_changes(record)])


def summary(record: dict[str, Any]) -> list[str]:
    """What limits, and the figures that show it, as sentences."""
    verdict, waits = record["verdict"], record["waits"]
    lines = [
        f"{_WORDS[verdict['bottleneck']]} ({verdict['agreeing']} of {verdict['repeats']} repeats say so): "
        f"{verdict['real']:,.0f} images/s."
    ]
    times, parts = record["resources_ms_per_image"], record["parts_ms_per_image"]
    if "cores" in times:
        of = f"; on the cores {_per_thousand(parts, ' CPU s')}, with {record['free_cores']:.2g} of the "
        of += f"{record['environment']['cores']} cores to be had"
    else:
        of = f"; of preparing {_per_thousand(parts, ' s')}"
    lines.append(f"Per 1,000 images: {_per_thousand(times, ' s')}{of}.")
    lines.append(
        f"The training loop waits for the loader {waits['wait_share']:.0%} of its time, for bytes "
        f"{waits['read_wait_share']:.0%}; page cache {record['settings']['page_cache']}."
    )
    if verdict["uneven"]:
        lines.append(
            f"Its parts promise {verdict['possible']:,.0f} images/s: handing over from one to the next loses the rest."
        )
    return lines


def _per_thousand(times: dict[str, float], unit: str) -> str:
    """Milliseconds per image are seconds per 1,000 images."""
    return ", ".join(f"{name} {value:.2f}{unit}" for name, value in times.items() if value)


def _stages(record: dict[str, Any]) -> list[str]:
    lines = [f"{'alone':28}{'images/s':>12}{'MB/s':>9}{'CPU s / 1,000':>15}"]
    for stage in record["stages"]:
        megabytes = median(stage["mb_per_s"])
        lines.append(
            f"{stage['title']:28}{median(stage['images_per_s']):>12,.0f}{f'{megabytes:,.0f}' if megabytes else '':>9}"
            f"{median(stage['cpu_s_per_1000']):>15.2f}"
        )
    return lines


def _changes(record: dict[str, Any]) -> list[str]:
    found = record["suggestions"]
    helpful = sorted((s for s in found if s["helps"]), key=lambda s: -s["gain"]["value"])
    groups = (
        ("What to change, measured:", helpful, _gain),
        ("Not to be tried here:", [s for s in found if not s["can_be_tried"]], lambda s: s["rests_on"]),
        ("Not measured (--no-verify):", [s for s in found if s["can_be_tried"] and s["helps"] is None], _none),
        ("Tried, and no help that the noise would let show:", [s for s in found if s["helps"] is False], _gain),
    )  # fmt: skip
    lines: list[str] = []
    for title, suggestions, figure in groups:
        if suggestions:
            lines.append(title)
        for suggestion in suggestions:
            caution = (
                f" Mind: {suggestion['caution']}." if suggestion["caution"] and suggestion["helps"] else ""
            )
            figures = figure(suggestion)
            lines.append(f"  - {suggestion['how']}{': ' if figures else ''}{figures}.{caution}")
    return lines or ["Nothing is known that would help."]


def _gain(suggestion: dict[str, Any]) -> str:
    gain = suggestion["gain"]
    return (
        f"{gain['value']:.2f} × the training's images/s ({gain['low']:.2f} – {gain['high']:.2f}, "
        f"{gain['confidence']:.0%} interval)"
    )


def _none(suggestion: dict[str, Any]) -> str:
    return ""
