"""Curves, bars and tables of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from train.config import flat
from train.page import Bar, Cell, Chart, Column, Table, cell, number_text
from train.report.judged import Judged
from train.report.plots import Plot, Point, Series, plot
from train.report.record import Line, Record, total_seconds

_PHASES = {
    "data": "waiting for data",
    "forward_backward": "computing: forward and backward",
    "optimiser": "computing: update of the weights",
    "evaluation": "evaluations",
    "checkpoint": "checkpoints",
}

_SCORES = {
    "top1": (
        "Accuracy",
        "Share of images of the evaluation split whose class was named right, after every epoch.",
    ),
    "map": (
        "Mean average precision",
        "How well the images of a class are ranked before all others, mean over the classes, after every epoch; 100 % "
        "is without mistake.",
    ),
}


def curves(record: Record) -> list[Plot]:
    """Loss, accuracy and learning rate over the epochs."""
    train, held_out, at = record.train, record.evaluations, _axis(record)
    averaged = "averaged weights, validation"
    made = [
        plot(
            "Loss",
            [
                Series("training", _points(train, "loss", at)),
                Series("validation", _points(held_out, "loss", at), 1),
                Series(averaged, _points(held_out, "ema_loss", at), 2),
            ],
            x_label=_x_label(record),
            note="How wrong the network is; less is better. In training it sees distorted images and often softened "
            "labels, so that its loss there may well be the higher one.",
        ),
        plot(
            _SCORES[record.metric][0],
            [
                Series("validation", _points(held_out, record.metric, at), 1),
                Series(averaged, _points(held_out, f"ema_{record.metric}", at), 2),
            ],
            x_label=_x_label(record),
            unit=" %",
            note=_SCORES[record.metric][1],
        ),
        plot(
            "Learning rate",
            [Series("learning rate", _points(train, "lr", at))],
            x_label=_x_label(record),
            note="How large the steps of learning were.",
        ),
    ]
    return [one for one in made if one is not None]


def speed(record: Record) -> list[Plot]:
    """Images per second and the share of time spent waiting, over the epochs."""
    at = _axis(record)
    waits = [(x, 100 * y) for x, y in _points(record.train, "data_wait_share", at)]
    made = [
        plot(
            "Speed",
            [Series("images/s", _points(record.train, "images_per_s", at))],
            x_label=_x_label(record),
            note="Images per second while training, all processes together.",
        ),
        plot(
            "Waiting for data",
            [Series("share of time", waits)],
            x_label=_x_label(record),
            unit=" %",
            note="Share of the training time in which the processor that trains had nothing to do, because images came "
            "too late.",
        ),
    ]
    return [one for one in made if one is not None]


def _axis(record: Record) -> Callable[[Line], float]:
    per_epoch = record.steps_per_epoch
    return (
        (lambda line: float(line["step"])) if per_epoch is None else (lambda line: line["step"] / per_epoch)
    )


def _x_label(record: Record) -> str:
    return "step" if record.steps_per_epoch is None else "epoch"


def _points(lines: Sequence[Line], key: str, at: Callable[[Line], float]) -> list[Point]:
    found = [(at(line), float(line[key])) for line in lines if line.get(key) is not None]
    return [(x, y) for x, y in found if math.isfinite(y)]  # an evaluation's loss may be none, as of fp16


def phases(record: Record) -> Chart:
    """Where the time went."""
    total = total_seconds(record.train)
    whole = sum(total.values())
    rows = [(name, total[phase]) for phase, name in _PHASES.items() if total.get(phase)]
    return _bars(
        "Where the time went", [(name, f"{100 * s / whole:.1f} %", s / whole, None) for name, s in rows]
    )


def sizes(judged: Judged) -> Chart:
    """Accuracy by the images' shorter side; no bars where all images are of one size."""
    slices = judged.figures["size_slices"]
    rows = []
    for one in slices if len(slices) > 1 else ():
        low, high = one["shorter_side"]
        side = f"{low} pixels" if low == high else f"{low} – {high} pixels"
        ends = one["interval"][0] / 100, one["interval"][1] / 100
        rows.append((f"{side} ({one['samples']:,} images)", f"{one['top1']:.1f} %", one["top1"] / 100, ends))
    return _bars("Accuracy by the image's shorter side", rows, "The line on a bar is its 95 % interval.")


_Row = tuple[str, str, float, tuple[float, float] | None]


def _bars(caption: str, rows: Sequence[_Row], note: str = "") -> Chart:
    """Bars of shares, 0 … 1: name, text, share, interval."""
    bars = [
        Bar(
            label=name,
            text=text,
            tip=f"{name}\n{text}"
            + (f"\n95 % interval: {100 * ends[0]:.1f} – {100 * ends[1]:.1f} %" if ends else ""),
            width=round(100 * share, 2),
            low=round(100 * ends[0], 2) if ends else None,
            high=round(100 * ends[1], 2) if ends else None,
            clipped=False,
        )
        for name, text, share, ends in rows
    ]
    return Chart(caption, bars, note)


@dataclass(frozen=True, slots=True)
class CalibrationBar:
    """A bar of the calibration diagram of 1000 × 1000."""

    x: float
    width: float
    height: float
    tip: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration diagram, and what it comes to."""

    bars: list[CalibrationBar]
    text: str


def calibration(judged: Judged) -> Calibration:
    """How often the network is right by how sure it is."""
    bins = [one for one in judged.figures["calibration"] if one["samples"]]
    bars = [
        CalibrationBar(
            x=round(1000 * one["low"], 1),
            width=round(1000 * (one["high"] - one["low"]), 1),
            height=round(1000 * one["accuracy"], 1),
            tip=f"{100 * one['low']:.0f} – {100 * one['high']:.0f} % sure: {one['samples']:,} images\n"
            f"sure on average: {100 * one['confidence']:.1f} %\nright: {100 * one['accuracy']:.1f} %",
        )
        for one in bins
    ]
    samples = sum(one["samples"] for one in bins)
    sure = 100 * sum(one["samples"] * one["confidence"] for one in bins) / samples
    right = 100 * sum(one["samples"] * one["accuracy"] for one in bins) / samples
    verdict = (
        "too sure of itself" if sure > right + 2 else "too modest" if sure < right - 2 else "well calibrated"
    )
    return Calibration(
        bars,
        f"On average it is {sure:.1f} % sure, and right {right:.1f} % of the time: {verdict} on the whole. Bin by bin "
        f"both differ by {100 * judged.figures['ece']:.1f} points (expected calibration error).",
    )


def settings(record: Record) -> Table:
    """The configuration."""
    rows = [[Cell(name), cell(_plain(value))] for name, value in flat(record.config).items()]
    return Table("", [Column("setting", False), Column("value", False)], rows)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))  # not a median of several measurements
    return number_text(value) if isinstance(value, float) else value if value != "" else None


def environment(record: Record) -> Table | None:
    """Machine and versions of the last start; None where the run did not note them."""
    starts = [line for line in record.history if line["event"] == "start"]
    if not starts:
        return None
    rows = []
    for name, value in starts[-1]["environment"].items():
        if isinstance(value, dict):
            rows += [[Cell(f"{name}: {one}"), Cell(str(it))] for one, it in value.items() if it is not None]
        elif value is not None and name != "date":  # the history has it
            rows.append([Cell(name.replace("_", " ")), Cell(str(value))])
    return Table("", [Column("what", False), Column("value", False)], rows)


_ENDS = {
    "finished": "finished",
    "stopped": "stopped by a signal, with a checkpoint",
    "failed": "ended by an error",
}


def history(record: Record) -> Table | None:
    """Starts and ends; None where the run did not note them."""
    rows, started = [], False
    for line in record.history:
        if line["event"] == "bad":
            continue
        if line["event"] == "start":
            what = f"went on after step {line['step']:,}" if line["step"] else "started"
            what += f", {line['ranks']} process{'' if line['ranks'] == 1 else 'es'}"
            if started:
                what += " (the start before was killed, or its machine went down)"
        else:
            what = f"{_ENDS.get(line['outcome'], line['outcome'])} at step {line['step']:,}"
        started = line["event"] == "start"
        rows.append([Cell(line["date"].replace("T", " ").removesuffix("+00:00")), Cell(what)])
    return Table("", [Column("when (UTC)", False), Column("what", False)], rows) if rows else None


def bad_samples(record: Record) -> Table | None:
    """Samples that could not be decoded in training; None if there were none."""
    samples = {line["sample"]["id"]: line["sample"] for line in record.history if line["event"] == "bad"}
    if not samples:
        return None
    rows = [
        [Cell(str(i), float(i)), Cell(one["key"]), Cell(one["shard"]), Cell(one["reason"])]
        for i, one in samples.items()
    ]
    heads = ("sample", "key", "shard", "reason")
    return Table(
        f"Left out because they do not decode: {len(rows)}", [Column(h, h == "sample") for h in heads], rows
    )
