"""Committed baselines: ratios of several runs, per class of machine, in one JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shard.errors import FeedlineError
from train.whole import whole

FORMAT = 2  # 1: threads were free to be on different cores
_SAME_BYTES = 0.1  # images of another size or compression are another workload


@dataclass(frozen=True, slots=True)
class Band:
    """What a ratio may be: the range of the baseline's runs, widened by itself on both sides.

    Five runs span 2.3 standard deviations on average, so the band ends some 3.5 of them from its middle.
    """

    low: float
    value: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The baseline of one class of machine.

    Attributes:
        name: of the class.
        margin: change beyond the noise that is still no regression, as a share.
        settings: what was run.
        runs: stage → signal → median ratio, of every run.
        environment: where and when it was taken.
    """

    name: str
    margin: float
    settings: dict[str, Any]
    runs: list[dict[str, dict[str, float]]]
    environment: dict[str, Any]

    def band(self, stage: str, signal: str) -> Band | None:
        """Band of a ratio; None: the baseline does not have it."""
        values = sorted(run[stage][signal] for run in self.runs if signal in run.get(stage, {}))
        if not values:
            return None
        spread = values[-1] - values[0]
        return Band(values[0] - spread, values[len(values) // 2], values[-1] + spread)

    def require_same(self, settings: dict[str, Any], file: Path) -> None:
        """Raise FeedlineError where another workload was measured than the baseline's."""
        for name, was in self.settings.items():
            now = settings.get(name)
            alike = (
                abs(now / was - 1) <= _SAME_BYTES if name == "bytes_per_image" and now and was else now == was
            )
            if not alike:
                raise FeedlineError(
                    f"{file} was taken with {name} {was!r} for class {self.name!r}, this run has {now!r}: give the "
                    "same flags and data, or take a new one with --update"
                )


def machine_class(environment: dict[str, Any]) -> str:
    """Key of a machine: what decides about ratios of speeds on it."""
    gpu = environment["gpu"]
    return f"{environment['cpu']}, {environment['cores']} cores" + (f", {gpu['name']}" if gpu else "")


def load(file: Path, name: str) -> Baseline:
    """Read the baseline of a class.

    Raises:
        FeedlineError: there is no such file or class in it.
    """
    classes = _read(file)
    if name not in classes:
        raise FeedlineError(
            f"{file} has no baseline for class {name!r} (it has: {', '.join(map(repr, classes)) or 'none'}); take one "
            "on this machine with --update and commit the file, or choose one with --class"
        )
    return Baseline(name=name, **classes[name])


def save(file: Path, baseline: Baseline) -> None:
    """Write the baseline of a class, and keep those of the others.

    Raises:
        FeedlineError: the file holds something else, or cannot be written.
    """
    classes = _read(file) if file.exists() else {}
    classes[baseline.name] = {
        "margin": baseline.margin,
        "settings": baseline.settings,
        "environment": baseline.environment,
        "runs": baseline.runs,
    }
    with whole(file) as part:
        part.write_text(json.dumps({"format": FORMAT, "classes": classes}, indent=1, sort_keys=True) + "\n")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise FeedlineError(
            f"there is no baseline {file}; take one on this machine with --update and commit it"
        ) from error
    except ValueError as error:
        raise FeedlineError(
            f"{file} is no baseline: {error}; take a new one with --update after removing it"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FeedlineError(f"{file} is no baseline of format {FORMAT}; remove it and take one with --update")
    classes: dict[str, Any] = content["classes"]
    return classes
