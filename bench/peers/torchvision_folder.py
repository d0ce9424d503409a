"""torchvision's ImageFolder with a DataLoader, as PyTorch's ImageNet example has it: Pillow in worker processes."""

from __future__ import annotations

from torchvision.datasets import ImageFolder

from bench.peers.augment import vision_transform
from bench.peers.base import Job, Peer


class TorchvisionFolder(Peer):
    """See `Peer`. The same images as class folders, unpacked from the shards."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._loader = self.data_loader(self._images())

    def _images(self) -> ImageFolder:
        return ImageFolder(self.class_folders(), vision_transform(self.job))
