"""Evaluations that runs have in common: results per sample, of the same dataset and split."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shard.dataset import read_columns
from shard.errors import FeedlineError
from train.assess.files import FIGURES, PREDICTIONS
from train.compare.multi_label import Answers
from train.compare.runs import Run
from train.run_folder import RunFolder

Key = tuple[str, str]  # fingerprint of the dataset, and split


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A run's evaluation by `python -m train eval`.

    Attributes:
        folder: its files.
        key: of which samples.
        data: dataset, for people.
        figures: what is in evaluation.json.
    """

    folder: Path
    key: Key
    data: str
    figures: dict[str, Any]

    def right(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ids of the samples [N], and whether the network has them right [N].

        Raises:
            FeedlineError: the file cannot be read.
        """
        table = self._read("id", "right")
        return table["id"].to_numpy().astype(np.int64), table["right"].to_numpy()

    def answers(self) -> Answers:
        """What the network said to the samples of a multi-label dataset, the classes in order of their names.

        Raises:
            FeedlineError: the file cannot be read.
        """
        table = self._read("id", "classes", "probabilities")
        given = list(self.figures["classes"])
        classes = sorted(given)
        order = [given.index(name) for name in classes]
        lists, shares = (table[name].combine_chunks() for name in ("classes", "probabilities"))
        targets = np.zeros((len(table), len(given)), np.bool_)
        rows = np.repeat(np.arange(len(table)), pc.list_value_length(lists))
        targets[rows, pc.index_in(lists.flatten(), pa.array(classes, pa.string()))] = True
        return Answers(
            ids=table["id"].to_numpy().astype(np.int64),
            classes=tuple(classes),
            targets=targets,
            probabilities=shares.flatten().to_numpy().reshape(targets.shape)[:, order],
        )

    def _read(self, *columns: str) -> pa.Table:
        path = self.folder / PREDICTIONS
        try:
            return read_columns(path.read_bytes(), list(columns))
        except (OSError, ValueError, KeyError) as error:  # Arrow's errors are ValueErrors
            raise FeedlineError(
                f"cannot read {path}: {error}; evaluate again, as `python -m train eval`"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What runs can be compared by.

    Attributes:
        evaluated: evaluations of the same samples, by the run's name.
        data: of these samples, for people; "" of none.
        split: of these samples.
        lacking: runs without such an evaluation, and the command that makes it.
    """

    evaluated: dict[str, Evaluated]
    data: str
    split: str
    lacking: dict[str, str]


def shared(runs: Sequence[Run]) -> Shared:
    """Find the dataset and split that the most runs are evaluated on, the runs' own before others."""
    found = {run.name: _evaluations(run) for run in runs}
    own = Counter((run.fingerprint, run.config.input.eval_split) for run in runs)
    counts = Counter(key for evaluations in found.values() for key in evaluations)
    if not counts:
        data, split = str(runs[0].config.data), runs[0].config.input.eval_split
        alike = len(own) == 1
        return Shared(
            evaluated={},
            data="",
            split="",
            lacking={run.name: _command(run, None if alike else (data, split)) for run in runs},
        )
    key = max(sorted(counts), key=lambda k: (counts[k], own[k]))
    chosen = {name: evaluations[key] for name, evaluations in found.items() if key in evaluations}
    data, split = next(iter(chosen.values())).data, key[1]
    lacking = {
        run.name: _command(
            run, None if (run.fingerprint, run.config.input.eval_split) == key else (data, split)
        )
        for run in runs
        if run.name not in chosen
    }
    return Shared(evaluated=chosen, data=data, split=split, lacking=lacking)


def require_comparable(runs: Sequence[Run], common: Shared) -> None:
    """Refuse accuracies of different samples.

    Raises:
        FeedlineError: says which run was evaluated on what.
    """
    on = {run.name: (run.fingerprint, run.config.input.eval_split) for run in runs if run.score is not None}
    if len(set(on.values())) <= 1 or not common.lacking:
        return
    texts = [
        f"{run.name}: {run.config.data}, split {run.config.input.eval_split!r}"
        for run in runs
        if run.name in on
    ]
    commands = "; ".join(common.lacking.values())
    raise FeedlineError(
        f"these runs were evaluated on different data, so their accuracies say nothing about each other "
        f"({'; '.join(texts)}); evaluate all on one dataset: {commands}"
    )


def _evaluations(run: Run) -> dict[Key, Evaluated]:
    """Evaluations of the best checkpoint as it is now, in the way in which it was chosen: by what they are of."""
    found: dict[Key, Evaluated] = {}
    for path in sorted(RunFolder(run.root).evaluations.glob(f"*/{FIGURES}")):
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
            key = figures["fingerprint"], figures["split"]
            how = figures["averaged"], figures["flip_tta"]  # mirrored images make any network better
            current = (Path(figures["checkpoint"]).name, figures["epoch"]) == ("best.pt", run.best_epoch)
            current = current and how == (run.averaged, run.config.evaluation.flip_tta)
            current = current and figures.get("own_checkpoint", True)  # older ones do not say
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FeedlineError(
                f"{path} cannot be read: {error!r}; remove its folder, or evaluate again"
            ) from error
        if current and (path.parent / PREDICTIONS).exists():
            found[key] = Evaluated(folder=path.parent, key=key, data=figures["data"], figures=figures)
    return found


def _command(run: Run, other: tuple[str, str] | None) -> str:
    """Command that evaluates a run, on another dataset and split than its own if need be."""
    words = ["--data", other[0], "--split", other[1]] if other else []
    return shlex.join(["python", "-m", "train", "eval", str(run.root), *words])
