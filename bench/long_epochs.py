"""A small dataset whose epochs last for a whole measurement.

At the end of an epoch the loader has nothing left to prepare, and starts anew with the next one. With a million images
nobody sees that; with 500 images and batches of 400 it would happen in every step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.order import Ids, Order
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes(Order):
    """The order of a dataset with long epochs that takes every sample once before it takes any again.

    An `Order` knows nothing of repetitions: by "window" it would read a few shards over and over, from memory.

    Attributes:
        times: repetitions of the dataset.
    """

    times: int = 1

    def draws(self, shard: npt.NDArray[np.int32], seed: int, epoch: int, label: Ids | None = None) -> Ids:
        """See `Order.draws`; passes are ordered as epochs are."""
        rows = len(shard)
        once, label = rows // self.times, label if label is None else label[: rows // self.times]
        passes = []
        for number in range(self.times):
            drawn = Order.draws(self, shard[:once], seed, epoch * self.times + number, label)
            # Numbers repeated augmentation anew: after all rows come their second repetitions.
            passes.append(drawn % once + number * once + drawn // once * rows)
        return np.concatenate(passes)


def in_passes(order: Order, times: int) -> Passes:
    """An order for a dataset that is repeated so many times."""
    return Passes(**asdict(order), times=times)


def with_long_epochs(dataset: Dataset, split: str, global_batch: int, most: int | None = None) -> LongEpochs:
    """Repeat a split until its epoch has 1,000 batches, or fewer where the batches are large, but at least 100.

    Args:
        dataset: that has the split.
        split: its name.
        global_batch: images of one step on all ranks.
        most: images of an epoch from which on it is repeated no further; None: as many as it takes.
    """
    least, wanted = _STEPS
    samples = global_batch * max(least, min(wanted, _ROWS // global_batch))
    samples = samples if most is None else min(samples, most)
    times = -(-samples // max(1, len(dataset.split(split))))
    return LongEpochs(dataset.root, dataset.classes, dataset.fingerprint, dataset.manifest, times)
