"""Features in Parquet: a row a sample, for whatever reads tables."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shard.dataset import Dataset, Split
from shard.labels import numbers
from train.features import Features
from train.multi_label import label_lists

_ROWS = 4096  # of a row group, at least


class FeatureFile:
    """Writes features as they come. A context manager.

    Columns: id (int64, row number of the split's index), key (string), label (int64), class (string), feature
    (list of D float32, fixed size). Of a multi-label dataset labels and classes, lists, in place of label and class.
    Key-value metadata: about.

    Args:
        path: the file.
        dataset: whose samples.
        split: the split.
        about: what the features are of, text by name.
    """

    def __init__(self, path: Path, dataset: Dataset, split: Split, about: dict[str, str]) -> None:
        self._path, self._split, self._about = path, split, about
        self._classes = np.array(dataset.classes, dtype=object)
        self._parts: list[pa.Table] = []
        self._rows = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, part: Features) -> None:
        """Write a batch."""
        values = part.values.cpu().numpy()
        feature = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        columns = {
            "id": pa.array(part.ids.numpy()),
            "key": pa.array([self._split.key(i) for i in part.ids.tolist()], pa.string()),
            **self._labels(part),
            "feature": feature,
        }
        self._parts.append(pa.table(columns))
        self._rows += len(part.ids)
        if self._rows >= _ROWS:
            self._flush()

    def _labels(self, part: Features) -> dict[str, pa.Array]:
        if part.labels.ndim == 1:
            labels = part.labels.numpy()
            return {"label": pa.array(labels), "class": pa.array(self._classes[labels], pa.string())}
        lists = label_lists(part.labels)
        classes = [self._classes[numbers(label)].tolist() for label in lists]
        return {
            "labels": pa.array(lists, pa.list_(pa.int64())),
            "classes": pa.array(classes, pa.list_(pa.string())),
        }

    def _flush(self) -> None:
        if not self._parts:
            return
        table = pa.concat_tables(self._parts).combine_chunks()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema.with_metadata(self._about))
        self._writer.write_table(table.replace_schema_metadata(self._about))
        self._parts, self._rows = [], 0

    def __enter__(self) -> FeatureFile:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left, unless something failed, and close the file."""
        if error is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()
