"""The evaluation that a report shows, out of the files that `python -m train eval` wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shard.dataset import Dataset, read_columns
from shard.errors import FeedlineError
from shard.names import readable
from train.assess.files import FIGURES, MATRIX, PREDICTIONS
from train.assess.per_class import Matrix
from train.report.record import Record
from train.run_folder import RunFolder, read_if_there

_SHOWN = ["id", "source", "label", "loss", "top5_labels", "top5_probabilities"]  # of a mistake


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A sample whose likeliest class is not its label.

    Attributes:
        id: of the sample in its split.
        source: name of its image.
        true: its label.
        predicted: the likeliest class's.
        probability: of that class, 0 … 1.
        true_probability: of the label, 0 … 1.
    """

    id: int
    source: str
    true: int
    predicted: int
    probability: float
    true_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An evaluation.

    Attributes:
        folder: of its files.
        figures: evaluation.json.
        classes: class names by label.
        matrix: int64 [classes, classes], true × predicted; None of a multi-label run, as there are no mistakes.
        mistakes: the worst, first those whose label had the least probability.
    """

    folder: Path
    figures: dict[str, Any]
    classes: list[str]
    matrix: Matrix | None
    mistakes: list[Mistake]


def find_judged(record: Record, most: int) -> Judged | None:
    """The newest evaluation of the run's best checkpoint on its evaluation split; None: there is none.

    One of an earlier best checkpoint or of another run's does not count, nor one of another dataset whose split has the
    same name, nor one that mirrored images or took weights otherwise than the run itself. Where the checkpoint itself
    is gone, the newest will do.

    Args:
        record: the run.
        most: mistakes that are read.
    """
    best = RunFolder(record.root).best
    content = read_if_there(best) or {}
    wanted = {
        "split": record.config.input.eval_split,
        "flip_tta": record.config.evaluation.flip_tta,
        "averaged": bool(record.judged),
    }
    wanted |= {key: content[key] for key in ("epoch", "fingerprint") if key in content}
    found = []
    for path in RunFolder(record.root).evaluations.glob(f"*/{FIGURES}"):
        about = _read_figures(path)
        of_best = Path(str(about.get("checkpoint"))).stem == best.stem
        of_best = of_best and about.get("own_checkpoint", True)  # older ones do not say
        if of_best and all(about.get(key) == value for key, value in wanted.items()):
            found.append((path.stat().st_mtime_ns, path.parent))
    return read_judged(max(found)[1], most) if found else None


def read_judged(folder: Path, most: int) -> Judged:
    """Read an evaluation.

    Raises:
        FeedlineError: it is incomplete or damaged.
    """
    figures = _read_figures(folder / FIGURES)
    if figures.get("multi_label"):
        return Judged(
            folder=folder, figures=figures, classes=list(figures["classes"]), matrix=None, mistakes=[]
        )
    try:
        matrix: Matrix = np.load(folder / MATRIX, allow_pickle=False)
        table = read_columns((folder / PREDICTIONS).read_bytes(), ["right", *_SHOWN])
        classes = list(figures["classes"])
        mistakes = _worst(table, most)
        if matrix.shape != (len(classes), len(classes)):
            raise ValueError(f"{MATRIX} is of shape {matrix.shape}, for {len(classes)} classes")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise FeedlineError(
            f"the evaluation in {folder} cannot be read: {error}; remove the folder, and it is made again"
        ) from error
    return Judged(folder=folder, figures=figures, classes=classes, matrix=matrix, mistakes=mistakes)


def _read_figures(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise FeedlineError(
            f"{path} cannot be read: {error}; remove its folder, and the evaluation is made again"
        ) from error
    return found


def _worst(table: pa.Table, most: int) -> list[Mistake]:
    wrong = np.flatnonzero(~table.column("right").to_numpy())
    losses = table.column("loss").to_numpy()
    order = wrong[np.argsort(-losses[wrong], kind="stable")][:most]
    return [
        Mistake(
            id=row["id"],
            source=row["source"],
            true=row["label"],
            predicted=row["top5_labels"][0],
            probability=row["top5_probabilities"][0],
            true_probability=float(np.exp(-row["loss"])),
        )
        for row in table.select(_SHOWN).take(pa.array(order)).to_pylist()
    ]


def class_names(classes: Sequence[str], dataset: Dataset | None) -> list[str]:
    """Names for people: the dataset's own, or WordNet's; the class's where there is none, and to tell equal ones apart.

    Args:
        classes: by the network's label.
        dataset: that it was judged on, if it is still there.
    """
    known: dict[str, str] = dict(zip(classes, readable(classes), strict=True))
    if dataset is not None and dataset.manifest.get("class_names"):
        known |= dict(zip(dataset.classes, dataset.manifest["class_names"], strict=True))
    short = [known.get(name, "").split(",")[0].strip() or name for name in classes]
    times = Counter(short)
    return [
        f"{one} ({name})" if times[one] > 1 and one != name else one
        for one, name in zip(short, classes, strict=True)
    ]
