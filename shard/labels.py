"""Labels of samples: one class each, or, in multi-label datasets, several or none.

Everywhere in this package a sample's label is an `int`, or, in a multi-label dataset, a list of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shard.errors import FeedlineError

SEPARATOR = "|"  # of class names in a text
LISTS = pa.list_(pa.int32())
Label = int | list[int]
Ints = npt.NDArray[np.int64]


def numbers(label: Label) -> list[int]:
    """All classes of a sample."""
    return [label] if isinstance(label, int) else label


def cls_text(label: Label) -> str:
    """Content of `KEY.cls`: the number, or the numbers with commas between them, which no `int()` takes for one."""
    return ",".join(map(str, numbers(label)))


def parse_cls(text: str) -> list[int] | None:
    """Inverse of `cls_text` in a multi-label dataset; None if it is none."""
    parts = text.split(",") if text else []
    return [int(part) for part in parts] if all(p.isascii() and p.isdigit() for p in parts) else None


def class_names(label: Label, classes: Sequence[str]) -> dict[str, Any]:
    """What `KEY.json` says of a sample's classes."""
    if isinstance(label, int):
        return {"class": classes[label]}
    return {"classes": [classes[i] for i in label]}


def label_text(label: Label, classes: Sequence[str]) -> str:
    """A sample's class for people, or all of them with + between them."""
    return "+".join(classes[i] for i in numbers(label)) or "no class"


def label_column(multi_label: bool) -> str:
    """Name of the column of tables that holds the labels."""
    return "labels" if multi_label else "label"


def flat_numbers(table: pa.Table) -> Ints:
    """Every class number of a table's samples, int64, one sample after the other."""
    column = table["label"] if "label" in table.column_names else pc.list_flatten(table["labels"])
    found: Ints = column.to_numpy().astype(np.int64, copy=False)
    return found


def require_single(multi_label: bool, what: str, remedy: str) -> None:
    """Refuse a multi-label dataset.

    Args:
        multi_label: whether it is one.
        what: is not available for it.
        remedy: what to do instead.

    Raises:
        FeedlineError: it is.
    """
    if multi_label:
        raise FeedlineError(f"{what} is not available for multi-label datasets; {remedy}")


@dataclass(frozen=True, slots=True)
class LabelLists:
    """Labels of the N samples of a split of a multi-label dataset.

    Attributes:
        starts: int64 [N + 1], where each sample's begin in `values`.
        values: int32, class numbers, one sample after the other.
        classes: how many the dataset has.
    """

    starts: Ints
    values: npt.NDArray[np.int32]
    classes: int

    @classmethod
    def of(cls, column: pa.ChunkedArray, classes: int) -> LabelLists:
        """Read a column of lists.

        Raises:
            ValueError: a sample without a list, or a class number out of range.
        """
        if column.null_count:
            raise ValueError("a sample has no list of labels")
        lengths = pc.list_value_length(column).to_numpy()
        values = np.ascontiguousarray(pc.list_flatten(column).to_numpy(), np.int32)
        if len(values) and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"a sample has a label outside 0 … {classes - 1}")
        return cls(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), values, classes)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> list[int]:
        """Class numbers of sample i."""
        found: list[int] = self.values[self.starts[i] : self.starts[i + 1]].tolist()
        return found

    def repeated(self, times: int) -> LabelLists:
        """All samples `times` times, one round after the other."""
        lengths = np.tile(np.diff(self.starts), times)
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return LabelLists(starts, np.tile(self.values, times), self.classes)

    def multi_hot(self, ids: Ints) -> npt.NDArray[np.float32]:
        """1 for each class of each sample, else 0: float32 [n, classes] of the samples `ids` [n]."""
        of, places = self.pairs(ids)
        found = np.zeros((len(ids), self.classes), np.float32)
        found[of, self.values[places]] = 1
        return found

    def pairs(self, ids: Ints) -> tuple[Ints, Ints]:
        """Every label of the samples `ids`, in their order: the place of its sample in `ids`, its place in `values`."""
        lengths = self.starts[ids + 1] - self.starts[ids]
        of = np.repeat(np.arange(len(ids)), lengths)
        within = np.arange(len(of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return of, self.starts[ids][of] + within
