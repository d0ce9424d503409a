"""What a run folder tells about a run, whether it has finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shard.errors import FeedlineError
from train import summary
from train.assess.figures import bootstrap_interval
from train.config import Config, load
from train.evaluate import metric_of, rank
from train.metrics import read_lines
from train.run_folder import RunFolder

Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A run, as its files have it.

    Attributes:
        root: the run folder.
        config: its configuration.
        train: metrics of the training, oldest first.
        evaluations: metrics of the evaluations, oldest first.
        before: what pretrained weights were worth before the training; {} if that was not measured.
        summary: the result; {} of a run that has not finished.
        history: starts, ends and bad samples, oldest first.
    """

    root: Path
    config: Config
    train: list[Line]
    evaluations: list[Line]
    before: Line
    summary: Line
    history: list[Line]

    @property
    def metric(self) -> str:
        """What decides which evaluation is the best: a name of `train.evaluate.METRICS`."""
        return metric_of(self.evaluations[0] if self.evaluations else {})

    @property
    def judged(self) -> str:
        """Prefix of the figures that decide which evaluation is the best: those of averaged weights where there are."""
        return "ema_" if any(f"ema_{self.metric}" in line for line in self.evaluations) else ""

    @property
    def best(self) -> Line | None:
        """Line of the best evaluation: of a finished run that which it took for the best."""
        score, loss = f"{self.judged}{self.metric}", f"{self.judged}loss"
        taken = [line for line in self.evaluations if line["epoch"] == self.summary.get("best_epoch")]
        return max(taken or self.evaluations, key=lambda line: rank(line[score], line[loss]), default=None)

    @property
    def steps_per_epoch(self) -> float | None:
        """Steps of an epoch; None before the first has ended."""
        first = self.evaluations[0] if self.evaluations else None  # the last epoch may be none whole
        return first["step"] / first["epoch"] if first and first["epoch"] else None


def read_record(root: Path) -> Record:
    """Read a run folder.

    Raises:
        FeedlineError: it is none, or one of its files is damaged.
    """
    folder = RunFolder(root)
    if not folder.config.exists():
        raise FeedlineError(
            f"{root} is no run folder ({folder.config} does not exist); give one of `python -m train`"
        )
    lines = read_lines(folder.metrics)
    kinds = {
        kind: [line for line in lines if line.get("kind") == kind] for kind in ("train", "eval", "before")
    }
    before = (kinds["before"] or [{}])[-1]
    return Record(
        root=root,
        config=load(folder.config),
        train=kinds["train"],
        evaluations=kinds["eval"],
        before=before if before.get(metric_of(before)) else {},
        summary=summary.read(folder.summary),
        history=read_lines(folder.history),
    )


def interval_of(top1: float, samples: int) -> tuple[float, float]:
    """Bootstrap interval, percent, of an accuracy in percent of which only the number of samples is known."""
    return bootstrap_interval(np.arange(samples) < round(top1 * samples / 100), seed=0)


def total_seconds(train: Sequence[Line]) -> dict[str, float]:
    """Seconds by phase (`train.meter.PHASES`) over all lines."""
    total: dict[str, float] = {}
    for line in train:
        for phase, seconds in line.get("time_s", {}).items():
            total[phase] = total.get(phase, 0.0) + seconds
    return total
