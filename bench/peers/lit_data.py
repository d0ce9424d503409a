"""LitData: optimised chunks with JPEG bytes, which it decodes to tensors; torchvision's v2 transforms in workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.peers.augment import tensor_transform
from bench.peers.base import Job, Peer


class LitData(Peer):
    """See `Peer`. Converted to local chunks once."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        # Read when litdata is imported; by default it fills folders below the home folder and /tmp.
        for variable in (
            "LITDATA_CACHE_DIR",
            "DATA_OPTIMIZER_CACHE_FOLDER",
            "DATA_OPTIMIZER_DATA_CACHE_FOLDER",
        ):
            os.environ[variable] = str(job.scratch / "cache")
        import litdata

        litdata.optimize(
            fn=_item,
            inputs=[str(path) for path in sorted(self.class_folders().rglob("*.jpg"))],
            output_dir=str(job.scratch / "chunks"),
            chunk_bytes="16MB",
            num_workers=1,
            verbose=False,
        )
        self._loader = litdata.StreamingDataLoader(
            litdata.StreamingDataset(
                str(job.scratch / "chunks"),
                shuffle=True,
                drop_last=False,
                transform=partial(_transform, transform=tensor_transform(job)),
            ),
            batch_size=job.batch_size,
            num_workers=job.threads,
            persistent_workers=True,
            pin_memory=job.device.type == "cuda",
        )

    def epoch(self) -> Iterator[tuple[Any, Any]]:
        """See `Peer.epoch`; every worker's last batch is a partial one."""
        for batch in self._loader:
            yield batch["image"], batch["label"]


def _item(path: str) -> dict[str, Any]:
    from PIL import Image

    return {"image": Image.open(path), "label": int(Path(path).parent.name)}


def _transform(sample: dict[str, Any], transform: Any) -> dict[str, Any]:
    image = sample["image"]
    grey = len(image) == 1
    return {
        "image": transform(image.expand(3, -1, -1) if grey else image),
        "label": torch.tensor(sample["label"]),
    }
