"""FFCV: a .beton file with the original JPEG bytes; libjpeg-turbo and OpenCV in its compiled, threaded pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter

from bench.peers.base import Job, Peer


class FFCV(Peer):
    """See `Peer`. Converted to a .beton file once; its own writer would encode the JPEGs anew."""

    output = "uint8 NCHW, channels last"
    note = "OpenCV's area interpolation"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        crop, path = job.crop, str(job.scratch / "images.beton")
        rows = _Rows(list(self.samples()), self.split.height, self.split.width)
        writer = DatasetWriter(path, {"image": _Jpeg(), "label": IntField()}, num_workers=1)
        writer.from_indexed_dataset(rows)
        self._loader = Loader(
            path,
            batch_size=job.batch_size,
            num_workers=job.threads,
            order=OrderOption.RANDOM,
            os_cache=True,
            drop_last=True,
            custom_fields={"image": RGBImageField},
            pipelines={
                "image": [
                    RandomResizedCropRGBImageDecoder((crop.size, crop.size), crop.scale, crop.ratio),
                    RandomHorizontalFlip(crop.hflip),
                    ToTensor(),
                    ToDevice(job.device, non_blocking=True),
                    ToTorchImage(),
                ],
                "label": [IntDecoder(), ToTensor(), Squeeze(), ToDevice(job.device, non_blocking=True)],
            },
        )

    def epoch(self) -> Iterator[tuple[Any, Any]]:
        """See `Peer.epoch`."""
        for images, labels in self._loader:
            yield images, labels.reshape(-1)


class _Rows:
    """(bytes, height, width), label of every sample, in the order of the shards."""

    def __init__(self, samples: list[tuple[bytes, int]], height: Any, width: Any) -> None:
        self._samples, self._height, self._width = samples, height, width

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> tuple[tuple[bytes, int, int], int]:
        image, label = self._samples[i]
        return (image, int(self._height[i]), int(self._width[i])), label


class _Jpeg(RGBImageField):  # type: ignore[misc]
    """Writes encoded bytes as they are."""

    def encode(self, destination: Any, image: tuple[bytes, int, int], malloc: Any) -> None:
        data, height, width = image
        destination["mode"] = IMAGE_MODES["jpg"]
        destination["height"], destination["width"] = height, width
        destination["data_ptr"], storage = malloc(len(data))
        storage[:] = np.frombuffer(data, np.uint8)
