"""torchvision's ImageFolder with a DataLoader, as PyTorch's ImageNet example has it: Pillow in worker processes.

The same images as class folders, unpacked from the shards into a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from loader import RandomResizedCrop
from shard.dataset import Split

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TorchvisionFolder:
    """See `bench.measure.Stage`."""

    name, title = "torchvision", "peer: torchvision ImageFolder + DataLoader"

    def __init__(
        self, split: Split, crop: RandomResizedCrop, batch_size: int, device: torch.device, threads: int
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="feedline-bench-")
        unpack(split, Path(self._folder.name))
        transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(crop.size, crop.scale, crop.ratio),
                transforms.RandomHorizontalFlip(crop.hflip),
                transforms.ToTensor(),
                transforms.Normalize(_MEAN, _STD),
            ]
        )
        self._loader: DataLoader[Any] = DataLoader(
            ImageFolder(self._folder.name, transform),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=threads,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        self.lead_in = 2 * threads + 1  # what the workers prefetch
        self._device = device
        self._batches = self._endless()
        self.last: Any = None  # images of the newest batch, float [B, 3, H, W]

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        images, _ = next(self._batches)
        self.last = images.to(self._device, non_blocking=True)
        return len(images), 0

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def close(self) -> None:
        """See `Stage.close`."""
        del self._batches, self._loader  # ends the workers
        self._folder.cleanup()

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self._loader


def unpack(split: Split, folder: Path) -> None:
    """Write the split's images as `folder`/<label>/<key>.jpg."""
    for number in range(len(split.shards)):
        data = split.shard_path(number).read_bytes()
        for i in (split.shard == number).nonzero()[0].tolist():
            start = int(split.offset[i])
            path = folder / f"{split.label[i]:06d}" / f"{split.key(i)}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data[start : start + int(split.size[i])])
