"""MosaicML streaming: MDS shards with JPEG bytes, Pillow in the DataLoader's workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import streaming
from torch.utils.data import DataLoader

from bench.peers.augment import vision_transform
from bench.peers.base import Job, Peer


class MosaicStreaming(Peer):
    """See `Peer`. Converted to local MDS shards once."""

    note = "shuffles in blocks (its default, py1e)"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        folder = str(job.scratch / "mds")
        with streaming.MDSWriter(out=folder, columns={"image": "bytes", "label": "int"}) as writer:
            for image, label in self.samples():
                writer.write({"image": image, "label": label})
        self._images: Any = _Images(folder, vision_transform(job), job.batch_size)
        self._loader: DataLoader[Any] | None = DataLoader(
            self._images,
            batch_size=job.batch_size,
            drop_last=True,
            num_workers=job.threads,
            persistent_workers=True,
            pin_memory=job.device.type == "cuda",
        )

    def epoch(self) -> Iterator[tuple[Any, Any]]:
        """See `Peer.epoch`."""
        assert self._loader is not None
        yield from self._loader

    def close(self) -> None:
        """See `Stage.close`; also frees the shared memory, which would outlive the process."""
        super().close()
        self._loader = self._images = None
        streaming.base.util.clean_stale_shared_memory()


class _Images(streaming.StreamingDataset):  # type: ignore[misc]
    """Decoding in `__getitem__`, as streaming's StreamingVisionDataset does it."""

    def __init__(self, folder: str, transform: Any, batch_size: int) -> None:
        super().__init__(local=folder, shuffle=True, batch_size=batch_size)
        self._transform = transform

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import io

        from PIL import Image

        sample = super().__getitem__(index)
        return self._transform(Image.open(io.BytesIO(sample["image"])).convert("RGB")), sample["label"]
