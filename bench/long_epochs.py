"""A small dataset whose epochs last for a whole measurement.

At the end of an epoch the loader has nothing left to prepare, and starts anew with the next one. With a million images
nobody sees that; with 500 images and batches of 400 it would happen in every step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shard.dataset import Dataset, Split

_STEPS = 100, 1000  # of an epoch: at least, and where memory allows
_ROWS = 2_000_000  # of its index: some 90 MB in every process, and a second to permute


@dataclass(frozen=True, slots=True)
class LongEpochs(Dataset):
    """A dataset in which every sample comes `times` times in an epoch, each time with another crop.

    Attributes:
        times: repetitions; 1 changes nothing.
    """

    times: int = 1

    def split(self, name: str) -> Split:
        """Load a split's index, and repeat its rows."""
        split = Dataset.split(self, name)
        if self.times == 1:
            return split
        columns = ("shard", "offset", "size", "width", "height", "crc32")
        repeated: dict[str, Any] = {column: np.tile(getattr(split, column), self.times) for column in columns}
        if split.lists is None:
            repeated["single"] = np.tile(split.label, self.times)
        else:
            repeated["lists"] = split.lists.repeated(self.times)
        keys = pa.chunked_array(split.keys.chunks * self.times)
        return dataclasses.replace(split, keys=keys, **repeated)


def with_long_epochs(dataset: Dataset, split: str, global_batch: int) -> LongEpochs:
    """Repeat a split until its epoch has 1,000 batches, or fewer where the batches are large, but at least 100."""
    least, wanted = _STEPS
    samples = global_batch * max(least, min(wanted, _ROWS // global_batch))
    times = -(-samples // max(1, len(dataset.split(split))))
    return LongEpochs(dataset.root, dataset.classes, dataset.fingerprint, dataset.manifest, times)
