"""Predictions as a table, CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from train.assess.files import write_parquet
from train.assess.report import align
from train.multi_label import THRESHOLD
from train.predict.predictor import Prediction

SUFFIXES = {"": "table", ".txt": "table", ".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}
_ROWS = 100  # of a table, for which columns are aligned


def write_table(rows: Iterable[Prediction], file: IO[str], top: int) -> None:
    """Aligned columns for people: name, then each class with its probability in percent.

    Of a multi-label network those that count as predicted have a star: rounded, 49.96 would look like one.
    """
    block: list[tuple[str, ...]] = []
    for row in rows:
        cells = [f"{c} {100 * p:.1f} %" for c, p in zip(row.classes, row.probabilities, strict=True)]
        if row.multi_label:
            stars = ("*" if p >= THRESHOLD else " " for p in row.probabilities)
            cells = [f"{cell} {star}" for cell, star in zip(cells, stars, strict=True)]
        block.append((printable(row.name), *cells))
        if len(block) == _ROWS:
            _print(block, file)
            block = []
    _print(block, file)


def _print(block: list[tuple[str, ...]], file: IO[str]) -> None:
    if block:
        print(align(block), file=file, flush=True)


def write_csv(rows: Iterable[Prediction], file: IO[str], top: int) -> None:
    """Columns image, class_1, probability_1, class_2, …."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["image", *(f"{what}_{i}" for i in range(1, top + 1) for what in ("class", "probability"))]
    )
    for row in rows:
        pairs = zip(row.classes, map(short, row.probabilities), strict=True)
        writer.writerow([text(row.name), *(value for pair in pairs for value in pair)])


def write_jsonl(rows: Iterable[Prediction], file: IO[str], top: int) -> None:
    """An object a line: {"image": …, "predictions": [{"class": …, "probability": …}, …]}."""
    for row in rows:
        pairs = zip(row.classes, map(short, row.probabilities), strict=True)
        said = [{"class": name, "probability": share} for name, share in pairs]
        print(json.dumps({"image": text(row.name), "predictions": said}, ensure_ascii=False), file=file)


def save_parquet(rows: Iterable[Prediction], path: Path) -> None:
    """Columns image, classes (list of names), probabilities (list of float32)."""
    every = list(rows)
    columns: dict[str, Any] = {
        "image": pa.array([text(row.name) for row in every], pa.string()),
        "classes": pa.array([row.classes for row in every], pa.list_(pa.string())),
        "probabilities": pa.array([row.probabilities for row in every], pa.list_(pa.float32())),
    }
    write_parquet(pa.table(columns), path)


WRITERS: dict[str, Callable[[Iterable[Prediction], IO[str], int], None]] = {
    "table": write_table,
    "csv": write_csv,
    "jsonl": write_jsonl,
}
FORMATS = (*WRITERS, "parquet")


def short(probability: float) -> float:
    """The fewest digits that give the same float32 again."""
    return float(f"{probability:.9g}")


def text(name: str) -> str:
    """A file's name as text, bytes that are no UTF-8 replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def printable(name: str) -> str:
    """A file's name for a terminal, which control characters in it would steer."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text(name))
