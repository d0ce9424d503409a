"""The files of an evaluation: figures, table, results per sample, confusion matrix and its picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shard.dataset import Split
from shard.errors import FeedlineError
from train.assess.evaluation import Evaluation
from train.assess.picture import draw_confusion
from train.assess.report import report
from train.assess.samples import Samples
from train.plots import has_matplotlib
from train.whole import whole

FIGURES, REPORT, PREDICTIONS, MATRIX, PICTURE = (
    "evaluation.json",
    "report.txt",
    "predictions.parquet",
    "confusion.npy",
    "confusion.png",
)


def require_writable(folder: Path) -> None:
    """Make a folder, where there is none, and look whether files can be written into it.

    Raises:
        FeedlineError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FeedlineError(f"cannot write into {folder}: {error.strerror}; give another --out") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FeedlineError(f"cannot write into {folder}: no permission, or read-only; give another --out")


def write(
    folder: Path,
    found: Evaluation,
    about: dict[str, Any],
    samples: Samples,
    split: Split,
    sources: Sequence[str],
) -> list[Path]:
    """Write all files of an evaluation into `folder`, over those of an earlier one, and return their paths.

    Args:
        folder: made where it does not exist.
        found: the figures.
        about: what was evaluated, and how; goes before the figures.
        samples: results.
        split: of the samples.
        sources: names of the split's images, by sample id.

    Raises:
        FeedlineError: the disk does not take them.
    """
    writers: dict[str, Callable[[Path], object]] = {
        REPORT: lambda path: path.write_text(report(found, whole=True), encoding="utf-8"),
        PREDICTIONS: lambda path: write_parquet(predictions(found.classes, samples, split, sources), path),
        MATRIX: lambda path: _save(path, found.matrix),
    }
    if has_matplotlib():
        writers[PICTURE] = lambda path: draw_confusion(found, path)
    return write_files(folder, writers, about | found.as_dict())


def write_files(
    folder: Path, writers: dict[str, Callable[[Path], object]], figures: dict[str, Any]
) -> list[Path]:
    """Write files by name, and evaluation.json, over those of an earlier evaluation, and return their paths.

    Raises:
        FeedlineError: the disk does not take them.
    """
    # Last, and the earlier one goes first: who finds figures may rely on it that the other files are of the same.
    writers[FIGURES] = lambda path: path.write_text(
        json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        encoding="utf-8",
    )
    try:
        (folder / FIGURES).unlink(missing_ok=True)
    except OSError as error:
        raise FeedlineError(f"cannot write into {folder}: {error.strerror}") from error
    for name, writer in writers.items():
        with whole(folder / name) as aside:
            writer(aside)
    return [folder / name for name in writers]


def _save(path: Path, matrix: npt.NDArray[np.int64]) -> None:
    with path.open("wb") as file:  # numpy adds a suffix to names
        np.save(file, matrix)


def predictions(classes: Sequence[str], samples: Samples, split: Split, sources: Sequence[str]) -> pa.Table:
    """Results per sample, in order of the ids.

    Columns: id, key, source, label (the network's number), class, right, loss, width and height (of the stored image,
    pixels), top5 (class names), top5_labels, top5_probabilities; the last three are lists of up to five, the likeliest
    first.
    """
    ids = samples.ids.tolist()
    names = pa.array(classes, pa.string())

    def lists(values: Any) -> pa.Array:
        width = samples.top.shape[1]
        offsets = pa.array(np.arange(0, (len(ids) + 1) * width, width, dtype=np.int32))
        return pa.ListArray.from_arrays(offsets, values)

    top = pa.array(samples.top.ravel().astype(np.int32))
    return pa.table(
        {
            "id": samples.ids,
            "key": split.keys.take(pa.array(samples.ids)),
            "source": pa.array([sources[i] for i in ids], pa.string()),
            "label": samples.labels.astype(np.int32),
            "class": names.take(pa.array(samples.labels)),
            "right": samples.right,
            "loss": samples.losses,
            "width": split.width[samples.ids],
            "height": split.height[samples.ids],
            "top5": lists(names.take(top)),
            "top5_labels": lists(top),
            "top5_probabilities": lists(pa.array(samples.probabilities.ravel())),
        }
    )


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table by way of memory: Arrow's threads hold no file of Python's at the interpreter's end."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    path.write_bytes(buffer.getvalue())
