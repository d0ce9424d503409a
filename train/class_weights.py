"""Weights of the classes in the loss."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.naming import nearest


def class_weights(spec: str, dataset: Dataset, split: str, device: torch.device) -> torch.Tensor | None:
    """Weights of the classes, float32 [classes]; None: all alike.

    Args:
        spec: "none"; "balanced": N / (classes × size of the class), as scikit-learn has it; or a file that gives every
            class a weight: .json {class: weight}, or .csv with lines class,weight.
        dataset: what is trained on.
        split: of it.
        device: where they go.

    Raises:
        FeedlineError: the file cannot be read, or does not give each class a positive weight; or "balanced" and a class
            without samples.
    """
    if spec == "none":
        return None
    classes = dataset.classes
    if spec == "balanced":
        counts = np.bincount(dataset.split(split).label, minlength=len(classes))
        if not counts.all():
            raise FeedlineError(
                f"class_weights is 'balanced', but {classes[int(counts.argmin())]!r} has no samples in {split!r} of "
                f"{dataset.root}; give a file of weights"
            )
        values = counts.sum() / (len(classes) * counts)
    else:
        values = np.array(_by_label(_read(Path(spec)), classes, spec))
    return torch.from_numpy(values).to(device, torch.float32)


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".json", ".csv"):
        raise FeedlineError(
            f"class_weights is {str(path)!r}; give none, balanced, or a file that ends in .json or .csv"
        )
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            return _once((name.strip(), value) for name, value in filter(None, csv.reader(text.splitlines())))
        found = json.loads(text, object_pairs_hook=_once)
    except (OSError, ValueError) as error:
        raise FeedlineError(
            f"class_weights: cannot read {path} ({error}); it should hold a line class,weight for each class, or as "
            ".json {class: weight}"
        ) from error
    if not isinstance(found, dict):
        raise FeedlineError(f"class_weights: {path} holds no JSON object {{class: weight}}")
    return found


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands there twice")
        found[name] = value
    return found


def _by_label(given: dict[str, Any], classes: Sequence[str], source: str) -> list[float]:
    for name in given:
        if name not in classes:
            raise FeedlineError(
                f"class_weights: {source} names {name!r}, which is no class of the dataset; {nearest(name, classes)}"
            )
    values = []
    for name in classes:
        if name not in given:
            raise FeedlineError(
                f"class_weights: {source} has no weight of class {name!r}; give every class one"
            )
        try:
            value = float(given[name])
        except (TypeError, ValueError):
            value = float("nan")
        if not 0 < value < float("inf"):
            raise FeedlineError(
                f"class_weights: {source} gives {name!r} the weight {given[name]!r}; it must be a positive number"
            )
        values.append(value)
    return values
