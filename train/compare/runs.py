"""What a run folder tells about its run: accuracy, cost, and how far it came."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shard.errors import FeedlineError
from train.config import Config, flat, load
from train.evaluate import METRICS
from train.flops import forward_flops
from train.metrics import read_lines
from train.model import make_model
from train.run_folder import RunFolder, read_if_there
from train.summary import read as read_summary

# Figures of an evaluation, by the metric that decides.
FIGURES = {"top1": ("top1", "top5", "loss"), "map": ("map", "loss")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run. None stands for what it has not recorded.

    Attributes:
        name: short, and different from those of the other runs.
        root: the run folder.
        config: its settings.
        fingerprint: of the dataset; None before the first checkpoint.
        finished: whether it came to its end.
        status: in words.
        metric: that decides, one of `METRICS`; None before the first checkpoint.
        top1: percent, of the best evaluation.
        top5: percent, of the same.
        map: percent, of the same, of a multi-label dataset.
        loss: of the same.
        averaged: whether these are of the averaged weights, as they are where the run kept them.
        best_epoch: of that evaluation, from 1.
        epochs: trained.
        images_per_s: while training.
        time_s: seconds in all, evaluations included.
        energy_kj: of the GPUs, in training steps.
        parameters: how many.
        gflops: of the forward pass of an image of the evaluation, a multiply-add counted as two.
        device: kind and number.
    """

    name: str
    root: Path
    config: Config
    fingerprint: str | None
    finished: bool
    status: str
    metric: str | None
    top1: float | None
    top5: float | None
    map: float | None
    loss: float | None
    averaged: bool
    best_epoch: int | None
    epochs: int
    images_per_s: float | None
    time_s: float | None
    energy_kj: float | None
    parameters: int | None
    gflops: float | None
    device: str | None

    @property
    def score(self) -> float | None:
        """What the metric says, percent."""
        return self.map if self.metric == "map" else self.top1


def read_runs(roots: Sequence[Path]) -> list[Run]:
    """Read runs.

    Args:
        roots: their folders.

    Raises:
        FeedlineError: one is no run folder, or is there twice.
    """
    resolved = [root.resolve() for root in roots]
    for at, root in enumerate(roots):
        if not RunFolder(root).config.exists():
            raise FeedlineError(
                f"{root} is no run folder (it has no config.yaml); give those of `python -m train`"
            )
        if resolved.index(resolved[at]) != at:
            raise FeedlineError(f"{root} is given twice; leave one out")
    return [_read(root, name) for root, name in zip(roots, _names(resolved), strict=True)]


def common_metric(runs: Sequence[Run]) -> str:
    """The metric that decides in all of them.

    Raises:
        FeedlineError: some are of multi-label datasets, others are not.
    """
    first = {run.metric: run for run in reversed(runs) if run.metric is not None}
    if len(first) > 1:
        single, several = first["top1"], first["map"]
        raise FeedlineError(
            f"comparing {single.root} (one class a sample: {METRICS['top1']}) and {several.root} (multi-label: "
            f"{METRICS['map']}) says nothing; compare runs of one kind at a time"
        )
    return next(iter(first), "top1")


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs: values by name, in the order of the runs."""
    values = [flat(run.config) for run in runs]
    # The run folder always differs; the recipe's name is of no effect beside its values.
    keys = [key for key in values[0] if key not in ("run_dir", "recipe")]
    found = {key: [one[key] for one in values] for key in keys}
    return {key: row for key, row in found.items() if any(value != row[0] for value in row)}


def _names(roots: Sequence[Path]) -> list[str]:
    """The last part of each path, or what comes after the folder that all have in common."""
    last = [root.name for root in roots]
    if len(set(last)) == len(last):
        return last
    common = Path(os.path.commonpath(roots))
    return [str(root.relative_to(common)) for root in roots]


def _read(root: Path, name: str) -> Run:
    folder = RunFolder(root)
    config = load(folder.config)
    summary = read_summary(folder.summary)
    best = read_if_there(folder.best)
    # Of a finished run the summary tells how far it came.
    newest = best if summary and best else (read_if_there(folder.last) or best)
    metric = None if newest is None else "map" if newest.get("multi_label") else "top1"
    lines = [line for line in read_lines(folder.metrics) if line.get("kind") == "train"]
    evaluation = best["last_eval"] if best is not None else {}
    averaged = f"ema_{metric}" in evaluation
    prefix = "ema_" if averaged else ""
    figures = {name: evaluation.get(prefix + name) for name in ("top1", "top5", "map", "loss")}
    parameters, gflops = _size(config, len(newest["classes"])) if newest is not None else (None, None)
    epochs = int(summary.get("epochs") or (newest["epoch"] if newest is not None else 0))
    return Run(
        name=name,
        root=root,
        config=config,
        fingerprint=newest.get("fingerprint") if newest is not None else None,
        finished=bool(summary),
        status=_status(config, summary, epochs),
        metric=metric,
        **figures,
        averaged=averaged,
        best_epoch=int(best["epoch"]) if best is not None else None,
        epochs=epochs,
        images_per_s=summary.get("images_per_s") or _speed(lines),
        time_s=summary.get("wall_s") or (newest or {}).get("elapsed_s"),
        energy_kj=_energy(lines, config.input.batch_size),
        parameters=parameters,
        gflops=gflops,
        device=f"{summary['ranks']} × {summary['device']}" if summary else None,
    )


def _status(config: Config, summary: dict[str, Any], epochs: int) -> str:
    if summary.get("synthetic"):
        return "synthetic data"
    if summary:
        return "finished early" if summary["ended"] else "finished"
    return f"unfinished: {epochs} of {config.schedule.duration}"


def _speed(lines: Sequence[dict[str, Any]]) -> float | None:
    """Images/s of an unfinished run: the mean over its lines, which stand for as many steps each."""
    found = [line["images_per_s"] for line in lines if line.get("images_per_s")]
    return round(len(found) / sum(1 / speed for speed in found), 1) if found else None


def _energy(lines: Sequence[dict[str, Any]], batch_size: int) -> float | None:
    """Kilojoules of all GPUs, of the images trained on and the images per joule of each line."""
    joules, before = 0.0, 0
    for line in lines:
        if line.get("images_per_joule"):
            joules += (line["step"] - before) * batch_size / line["images_per_joule"]
        before = line["step"]
    return joules / 1000 or None


def _size(config: Config, classes: int) -> tuple[int, float]:
    """Parameters, and GFLOPs of the forward pass of an image."""
    device = torch.device("cpu")
    net = make_model(config.model, classes, device, resumed=True)  # weights do not matter
    return sum(p.numel() for p in net.parameters()), forward_flops(net, config.input.eval_size, device) / 1e9
