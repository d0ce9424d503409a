"""torchvision's ImageFolder with a DataLoader, as PyTorch's ImageNet example has it: Pillow in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from bench.peers.augment import vision_transform
from bench.peers.base import Job, Peer


class TorchvisionFolder(Peer):
    """See `Peer`. The same images as class folders, unpacked from the shards."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._loader: DataLoader[Any] | None = DataLoader(
            self._images(),
            batch_size=job.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=job.threads,
            persistent_workers=True,
            pin_memory=job.device.type == "cuda",
        )

    def _images(self) -> ImageFolder:
        return ImageFolder(self.class_folders(), vision_transform(self.job))

    def epoch(self) -> Iterator[tuple[Any, Any]]:
        """See `Peer.epoch`."""
        assert self._loader is not None
        yield from self._loader

    def close(self) -> None:
        """See `Stage.close`."""
        super().close()
        self._loader = None
