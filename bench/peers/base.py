"""What the adapters share: the job, the stage, and the class folders that some of them read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from loader import RandomResizedCrop
from shard.dataset import Dataset, Split

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every peer has to do; can be pickled.

    Attributes:
        data: dataset folder.
        split: name of the split.
        crop: window, output size and flip.
        batch_size: images per batch.
        device: where batches are wanted.
        threads: CPU threads, or worker processes, for decoding.
        scratch: an empty folder of this peer's own, removed by the caller.
        augment: policy by name, see `bench.peers.augment`; None: none.
    """

    data: Path
    split: str
    crop: RandomResizedCrop
    batch_size: int
    device: torch.device
    threads: int
    scratch: Path
    augment: str | None = None

    def open(self) -> Split:
        """Load the split's index."""
        return Dataset.open(self.data).split(self.split)


class Peer:
    """A `bench.measure.Stage` around somebody's loader.

    Images come as uint8 in 0 … 255, or as floats normalised with `MEAN` and `STD`, in either layout.
    An adapter makes `_loader`; where that gives images and labels, it needs no `epoch` of its own.

    Attributes:
        output: what a batch is, for the table.
        note: what its users should know about how it does the work.
        images: of the newest batch.
        labels: of the newest batch.
    """

    name = title = ""  # the registry's
    output = "float32 NCHW, normalised"
    note = ""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.split = job.open()
        # One rule for all, ours too, above what any of them has in stock after a rest: measured with 2 threads 1 to 5
        # batches with a DataLoader, 9 with SPDL, 17 with grain. A peer that starts with a full stock looks too fast.
        self.lead_in = 8 * job.threads + 4
        self.images: Any = None
        self.labels: Any = None
        self._batches: Iterator[tuple[Any, Any]] | None = None
        self._loader: Any = None

    def epoch(self) -> Iterator[tuple[Any, Any]]:
        """Images and labels of one pass over the split, or over its full batches."""
        yield from self._loader

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        if self._batches is None:
            self._batches = self._endless()
        self.images, self.labels = next(self._batches)
        if isinstance(self.images, torch.Tensor):
            self.images = self.images.to(self.job.device, non_blocking=True)
        return len(self.labels), 0

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.job.device.type == "cuda":
            torch.cuda.synchronize(self.job.device)

    def close(self) -> None:
        """See `Stage.close`; ends the workers, which live as long as their loader."""
        self._batches = self.images = self.labels = self._loader = None

    def _endless(self) -> Iterator[tuple[Any, Any]]:
        while True:
            yield from self.epoch()

    @property
    def full_batches(self) -> int:
        """Batches of an epoch without the partial one."""
        return len(self.split) // self.job.batch_size

    def data_loader(self, images: Any, *, shuffle: bool = True) -> DataLoader[Any]:
        """PyTorch's, with a worker process for each thread."""
        return DataLoader(
            images,
            batch_size=self.job.batch_size,
            shuffle=shuffle,
            drop_last=True,
            num_workers=self.job.threads,
            persistent_workers=True,
            pin_memory=self.job.device.type == "cuda",
        )

    def samples(self) -> Iterator[tuple[bytes, int]]:
        """Encoded image and label of every sample, for conversion; the bytes as they are."""
        for number in range(len(self.split.shards)):
            data = self.split.shard_path(number).read_bytes()
            for i in (self.split.shard == number).nonzero()[0].tolist():
                start = int(self.split.offset[i])
                yield data[start : start + int(self.split.size[i])], int(self.split.label[i])

    def class_folders(self) -> Path:
        """Write the images as class folders, and return the folder."""
        for i, (image, label) in enumerate(self.samples()):
            folder = self.job.scratch / "images" / f"{label:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:010d}.jpg").write_bytes(image)
        return self.job.scratch / "images"
