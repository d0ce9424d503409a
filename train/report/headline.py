"""The first lines of a report: what was trained on what, and how well it does, in words."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from shard.dataset import Dataset
from train.page import number_text
from train.progress import clock
from train.report.judged import Judged
from train.report.record import Record, interval_of

# How what pretrained weights were worth was measured, by the names of metrics.jsonl.
_BEFORE = {
    "head": "with the classifier that they came with",
    "knn": "by their nearest neighbours among the training images",
    "probe": "by a linear classifier on their features",
}


def headline(record: Record, judged: Judged | None, dataset: Dataset | None) -> list[str]:
    """Sentences: the accuracy with its interval, what guessing would give, and before and after."""
    if record.config.synthetic:
        return [f"{record.config.model.arch} ran on noise, to measure speed: it has learnt nothing."]
    if record.best is None:
        return [f"{_trained(record, dataset)}. It has not been evaluated yet."]
    several = record.metric == "map"
    where = "that it had not been trained on"
    if record.config.input.eval_split == record.config.input.train_split:
        where = "that it was trained on, too: that says little about others"
    score, found = (_ranking if several else _naming)(record, judged, where)
    lines = [f"{_trained(record, dataset)}. {found}"]
    classes = len(judged.classes) if judged else len(dataset.classes) if dataset else 0
    if classes > 1 and not several:
        lines.append(
            f"Guessing among {classes:,} classes would be right {number_text(100 / classes)} % of the time"
            + (_largest(judged.matrix, 100 / classes) if judged and judged.matrix is not None else "")
            + "."
        )
    if record.before:
        samples = judged.figures["samples"] if judged else record.best[f"{record.judged}samples"]
        lines.append(_before(record, score, samples))
    return lines


def _largest(matrix: npt.NDArray[np.int64], guess: float) -> str:
    """What naming the largest class alone would give, percent, where that is clearly more than a guess."""
    share = 100 * float(matrix.sum(axis=1).max() / matrix.sum())
    return f", and naming the largest class every time {share:.1f} %" if share > guess + 2 else ""


def _naming(record: Record, judged: Judged | None, where: str) -> tuple[float, str]:
    """Top-1 in percent, and a sentence about it."""
    top1, (low, high), samples = _accuracy(record, judged)
    return top1, (
        f"It names the right class for {top1:.1f} % (95 % interval: {low:.1f} – {high:.1f} %) of {samples:,} images "
        f"{where}."
    )


def _ranking(record: Record, judged: Judged | None, where: str) -> tuple[float, str]:
    """Of a multi-label run mAP in percent, and sentences about it."""
    assert record.best is not None
    known = {name: record.best[f"{record.judged}{name}"] for name in ("map", "samples")}
    if judged is not None:
        known = judged.figures
    score, samples = known["map"], known["samples"]
    text = f"Its mean average precision over the classes is {score:.1f} % on {samples:,} images {where}"
    if judged is None:
        return score, f"{text}."
    figures = judged.figures
    chance = sum(one["support"] for one in figures["classes"].values()) / len(judged.classes) / samples
    low, high = figures["micro_f1_interval"]
    return score, (
        f"{text}; ranking them at random would give {number_text(100 * chance)} %. With every class of a probability "
        f"of at least {figures['threshold']} taken for right, F1 over all decisions is {figures['micro_f1']:.1f} % "
        f"(95 % interval: {low:.1f} – {high:.1f} %)."
    )


def _trained(record: Record, dataset: Dataset | None) -> str:
    """Who was trained on what, without the full stop."""
    config = record.config
    name = PurePosixPath(str(config.data).rstrip("/")).name or str(config.data)
    on = f"the dataset {name}"
    if dataset is not None and config.input.train_split in dataset.split_names:
        count = int(dataset.manifest["splits"][config.input.train_split]["samples"])
        on = f"{count:,} images of {len(dataset.classes):,} classes ({name})"
    start = " from pretrained weights" if config.model.pretrained else ""
    return f"{config.model.arch} was trained{start} on {on}"


def _accuracy(record: Record, judged: Judged | None) -> tuple[float, tuple[float, float], int]:
    if judged is not None:
        low, high = judged.figures["top1_interval"]
        return judged.figures["top1"], (low, high), judged.figures["samples"]
    assert record.best is not None
    top1, samples = record.best[f"{record.judged}top1"], record.best[f"{record.judged}samples"]
    return top1, interval_of(top1, samples), samples


def _before(record: Record, after: float, samples: int) -> str:
    figures, judged = record.before[record.metric], record.before["samples"]
    of = f" (judged on {judged:,} of these images)" if judged < samples else ""
    ways = [f"{value:.1f} % {_BEFORE.get(name, name)}" for name, value in figures.items()]
    gain = after - max(figures.values())
    return (
        f"Before this training the pretrained weights reached {' and '.join(ways)}{of}; after it {after:.1f} %: "
        f"{abs(gain):.1f} points {'more' if gain >= 0 else 'less'}."
    )


def facts(record: Record, judged: Judged | None) -> list[tuple[str, str]]:
    """Figures by name, for the row below the headline; what is not known is left out."""
    summary, found = record.summary, []
    if judged is not None:
        figures, classes = judged.figures, len(judged.classes)
        if judged.matrix is None:
            found.append(("mean average precision", f"{figures['map']:.2f} %"))
            found.append(("micro-averaged F1", f"{figures['micro_f1']:.2f} %"))
        else:
            found.append(("top-1 accuracy", f"{figures['top1']:.2f} %"))
        if classes > 5 and judged.matrix is not None:
            found.append(("right class among the best five", f"{figures['top5']:.2f} %"))
        found.append(("loss", f"{figures['loss']:.4f}"))
        found.append(("weights", "averaged over the training" if figures["averaged"] else "as trained"))
    if record.best is not None:
        found.append(("best epoch", f"{record.best['epoch']} of {record.evaluations[-1]['epoch']}"))
    if summary:
        found.append(("training time", clock(summary["wall_s"])))
        if summary["images_per_s"]:
            found.append(("speed", f"{summary['images_per_s']:,.0f} images/s"))
        found.append(("processes", f"{summary['ranks']} × {summary['device'].upper()}"))
        if summary["ended"]:
            found.append(("ended early", summary["ended"]))
    else:
        found.append(("state", "not finished"))
    return found
