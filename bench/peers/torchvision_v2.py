"""torchvision's reference scripts with `--backend tensor`: libjpeg-turbo in worker processes, v2 transforms."""

from __future__ import annotations

from typing import Any

from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, read_file

from bench.peers.augment import tensor_transform
from bench.peers.torchvision_folder import TorchvisionFolder


class TorchvisionTensors(TorchvisionFolder):
    """See `Peer`."""

    def _images(self) -> ImageFolder:
        return ImageFolder(self.class_folders(), tensor_transform(self.job), loader=_decode)


def _decode(path: str) -> Any:
    return decode_image(read_file(path), ImageReadMode.RGB)
