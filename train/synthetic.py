"""`--synthetic`: one batch that stays on the device, for the most images/s that training could reach."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch

from loader import Batch
from loader.bad import BadSample
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.distributed import World
from train.inputs import InputConfig, micro_batch, num_samples


def synthetic_batch(batch_size: int, side: int, classes: int, device: torch.device, seed: int = 0) -> Batch:
    """A batch of noise, images uint8 [B, side, side, 3]; ids are -1: no sample is like that."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, classes, (batch_size,), generator=draw)
    ids = torch.full((batch_size,), -1)
    valid = torch.ones(batch_size, dtype=torch.bool)
    return Batch(images.to(device), labels.to(device), ids, valid.to(device), batch_size)


class SyntheticLoader:
    """Has the length and the shapes of the training loader, and reads nothing but the manifest.

    Args:
        config: input settings.
        dataset: whose length and classes it takes.
        seed: of the noise.
        accumulate: micro-batches per step.
        world: the ranks that share each global batch.
        size_at: side of the images at (epoch, samples consumed); None: the config's.

    Raises:
        FeedlineError: the global batch does not divide, or the split is smaller than it.
    """

    def __init__(
        self,
        config: InputConfig,
        dataset: Dataset,
        seed: int,
        accumulate: int,
        world: World,
        size_at: Callable[[int, int], int] | None = None,
    ) -> None:
        self.num_samples = num_samples(config, dataset)
        self.batch_size = micro_batch(config.batch_size, world.size, accumulate)
        self.epoch = self.samples_consumed = 0
        self.bad_samples: list[BadSample] = []  # noise always decodes
        self._parts, self._global = accumulate * (self.num_samples // config.batch_size), config.batch_size
        self._share = self._global // accumulate
        self._size_at = size_at or (lambda epoch, consumed: config.size)

        def make(side: int) -> Batch:
            return synthetic_batch(self.batch_size, side, len(dataset.classes), world.device, seed)

        self._make = functools.cache(make)

    def __iter__(self) -> Iterator[Batch]:
        """The batch, as often as the epoch has micro-batches; then the next epoch begins."""
        for part in range(self._parts):
            batch = self._make(self._size_at(self.epoch, part * self._share))
            self.samples_consumed = (part + 1) * self._share
            yield batch
        self.epoch, self.samples_consumed = self.epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`."""
        self.epoch, self.samples_consumed = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Its position means nothing: no run goes on from it."""
        raise FeedlineError("a run on synthetic data has no checkpoints")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
        raise FeedlineError("a run on synthetic data has no checkpoints")

    def __enter__(self) -> SyntheticLoader:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""
