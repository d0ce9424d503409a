"""Our own stages, from the disk to the weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from loader import Batch, Loader, Transform
from loader.jpeg import Decoder
from loader.order import Ids, Order
from loader.reader import Encoded, ShardReader
from shard.dataset import Split
from train.step import TrainStep

_CHUNK = 64  # images per step of the first two stages
LR = 1e-3  # small enough that a long measurement does not diverge


class Read:
    """Bytes of the samples in shuffled order by the loader's reader, one thread."""

    name, title, lead_in = "read", "read from shards", 0

    def __init__(self, split: Split) -> None:
        self._reader = ShardReader(split)
        self._ids = _endless(split)

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        ids = next(self._ids)
        self._reader.announce(ids)
        return len(ids), sum(map(len, self._reader.read(ids)))

    def synchronize(self) -> None:
        """Nothing runs in the background."""

    def close(self) -> None:
        """See `Stage.close`."""
        self._reader.close()


class Decode:
    """The decode ceiling: libjpeg-turbo alone on all cores, of each image the window that the crop needs."""

    name, title, lead_in = "decode", "decode ceiling", 1

    def __init__(self, split: Split, transform: Transform, threads: int) -> None:
        self._split, self._transform = split, transform
        self._reader = ShardReader(split)
        self._ids = _endless(split)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._local = threading.local()

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        ids = np.concatenate([next(self._ids) for _ in range(self._threads)])
        encoded = self._reader.read(ids)
        windows = self._transform.params(
            0, 0, ids, self._split.width[ids], self._split.height[ids]
        ).window.tolist()
        parts = np.array_split(np.arange(len(encoded)), self._threads * 4)
        list(self._pool.map(lambda part: self._decode([(encoded[i], windows[i]) for i in part]), parts))
        return len(encoded), sum(map(len, encoded))

    def _decode(self, work: list[tuple[Encoded, list[int]]]) -> None:
        if not hasattr(self._local, "decoder"):
            self._local.decoder = Decoder()
        for encoded, window in work:
            self._local.decoder.window(encoded, *window)

    def synchronize(self) -> None:
        """Every step ends with its work done."""

    def close(self) -> None:
        """See `Stage.close`."""
        self._pool.shutdown()
        self._reader.close()


class Load:
    """The loader: what training gets, without training.

    Attributes:
        loader: closed with the stage.
    """

    lead_in = 6

    def __init__(self, loader: Loader, name: str, title: str) -> None:
        self.name, self.title = name, title
        self.loader = loader
        self._batches = endless_batches(loader)

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        batch = next(self._batches)
        return batch.num_valid, _encoded_bytes(self.loader, batch)

    def synchronize(self) -> None:
        """Wait for the GPU, where batches are made there."""
        synchronize(self.loader.device)

    def close(self) -> None:
        """See `Stage.close`."""
        self.loader.close()


class Copy:
    """Finished batches from the host's page-locked memory to the GPU, and nothing else; bytes are those of pixels."""

    name, title, lead_in = "copy", "host-to-device copy", 2

    def __init__(self, batch_size: int, size: int, device: torch.device) -> None:
        shape = (batch_size, size, size, 3)
        self._host = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self._there = torch.empty(shape, dtype=torch.uint8, device=device)

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        self._there.copy_(self._host, non_blocking=True)
        return len(self._host), self._host.numel()

    def synchronize(self) -> None:
        """Wait for the GPU."""
        synchronize(self._there.device)

    def close(self) -> None:
        """Nothing to free."""


class Synthetic:
    """Training steps on one batch that is already on the device: the most that training could reach."""

    name, title, lead_in = "synthetic", "training, synthetic data", 1

    def __init__(self, train_step: TrainStep, batch: Batch) -> None:
        self._train_step, self._batch = train_step, batch

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        return train_on(self._train_step, self._batch), 0

    def synchronize(self) -> None:
        """Wait for the GPU."""
        synchronize(self._train_step.world.device)

    def close(self) -> None:
        """Nothing to free."""


class Real:
    """Training steps fed by the loader."""

    name, title = "real", "training, real data"

    def __init__(self, train_step: TrainStep, loader: Loader) -> None:
        self.lead_in = fed_lead_in(train_step.world.device)
        self._train_step, self._loader = train_step, loader
        self._batches = endless_batches(loader)

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        batch = next(self._batches)
        return train_on(self._train_step, batch), _encoded_bytes(self._loader, batch)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        synchronize(self._train_step.world.device)

    def close(self) -> None:
        """See `Stage.close`."""
        self._loader.close()


def endless_batches(
    loader: Loader, begin: Callable[[], None] = lambda: None, every: int | None = None
) -> Iterator[Batch]:
    """Batches of one epoch after another; `begin` is called before each, and after `every` so many of its batches."""
    while True:
        begin()
        for number, batch in enumerate(loader, 1):
            yield batch
            if every is not None and number % every == 0:
                begin()


def fed_lead_in(device: torch.device) -> int:
    """Steps before the clock of a training on real data starts.

    On a GPU, where a step takes milliseconds, the batches that were prefetched while other stages ran would flatter it.
    On a CPU a step takes as long as a tenth of a measurement, and its cores make the next batches meanwhile.
    """
    return 6 if device.type == "cuda" else 1


def train_on(train_step: TrainStep, batch: Batch) -> int:
    """Do one training step, and return the images it had."""
    train_step.forward_backward(batch.images, batch.labels, batch.valid)
    train_step.update(LR)
    return batch.num_valid


def _encoded_bytes(loader: Loader, batch: Batch) -> int:
    ids = batch.ids.numpy()
    return int(loader.split.size[ids[ids >= 0]].sum())


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _endless(split: Split) -> Iterator[Ids]:
    """Ids in shuffled order, a chunk at a time, epoch after epoch."""
    epoch = 0
    while True:
        order = Order(shuffle="global").draws(split.shard, 0, epoch)
        for first in range(0, len(order), _CHUNK):
            yield order[first : first + _CHUNK]
        epoch += 1
