"""timm's own dataset and loader, as its train.py makes them, without its default colour jitter."""

from __future__ import annotations

from timm.data import create_dataset, create_loader

from bench.peers.base import MEAN, STD, Job, Peer


class TimmLoader(Peer):
    """See `Peer`. The same images as class folders; uint8 between the processes, normalised at the end."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        crop = job.crop
        self._loader = create_loader(
            create_dataset("", root=str(self.class_folders())),
            input_size=(3, crop.size, crop.size),
            batch_size=job.batch_size,
            is_training=True,
            scale=crop.scale,
            ratio=crop.ratio,
            hflip=crop.hflip,
            color_jitter=0.0,
            auto_augment=job.augment,
            interpolation="bilinear",
            mean=MEAN,
            std=STD,
            num_workers=job.threads,
            device=job.device,
            pin_memory=job.device.type == "cuda",
        )
