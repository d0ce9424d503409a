"""The result of a finished run: summary.json, and its lines for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shard.errors import FeedlineError
from train import before
from train.config import Config
from train.distributed import World
from train.evaluate import METRICS, metric_of
from train.meter import Meter
from train.numerics import CompileWatch
from train.progress import clock
from train.run_folder import RunFolder
from train.state import RunState


def collect(
    config: Config,
    world: World,
    state: RunState,
    watch: CompileWatch,
    meter: Meter,
    epochs: int,
    elapsed_s: float,
) -> dict[str, Any]:
    """What summary.json holds of a finished run.

    Args:
        config: of the run.
        world: its ranks.
        state: its end.
        watch: what was compiled.
        meter: of this process's training.
        epochs: trained.
        elapsed_s: by all its processes.
    """
    speed = meter.total.images_per_s(config.input.batch_size)
    return {
        **state.result(),
        "epochs": epochs,
        "compiled_graphs": watch.graphs,
        "recompiled_graphs": watch.recompiled,
        "wall_s": round(elapsed_s, 1),
        "images_per_s": speed and round(speed, 1),
        "ranks": world.size,
        "device": world.device.type,
        "synthetic": config.synthetic,
    }


def write(summary: dict[str, Any], path: Path) -> None:
    """Write summary.json, whole or not at all."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def read(path: Path) -> dict[str, Any]:
    """A summary; {} of a run that has not finished.

    Raises:
        FeedlineError: it is damaged.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except ValueError as error:
        raise FeedlineError(f"{path} cannot be read: {error}; remove it") from error
    return found


def show(summary: dict[str, Any], folder: RunFolder) -> None:
    """Print the result."""
    if summary["synthetic"]:
        print(
            f"synthetic data: {summary['images_per_s'] or 0:,.0f} images/s is the most that training could reach; "
            f"nothing was learnt, evaluated or saved\nconfig, metrics, summary: {folder.root}"
        )
        return
    metric = metric_of(summary)
    best = summary[f"best_{metric}"]
    if summary.get("before", {}).get(metric):
        print(before.table(summary["before"], best, summary["best_epoch"], summary["samples"]))
    speed = summary["images_per_s"]
    print(
        f"{METRICS[metric]} {summary[metric]:.2f} %"
        + (f", top-5 {summary['top5']:.2f} %" if "top5" in summary else "")
        + f" on {summary['samples']} samples; best {METRICS[metric]} {best:.2f} % after epoch {summary['best_epoch']}\n"
        f"{summary['ended'] + chr(10) if summary['ended'] else ''}"
        f"{_counted(summary['epochs'], 'epoch')}, {_counted(summary['steps'], 'step')} in {clock(summary['wall_s'])}"
        + (f", {speed:.0f} images/s while training" if speed else "")
        + f"\nconfig, metrics, summary: {folder.root}\nweights: {folder.best} (best), {folder.last} (last)"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
