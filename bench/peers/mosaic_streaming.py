"""MosaicML streaming: MDS shards with JPEG bytes, Pillow in the DataLoader's workers."""

from __future__ import annotations

from typing import Any

import streaming

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
        images = _Images(folder, vision_transform(job), job.batch_size)
        self._loader = self.data_loader(images, shuffle=False)  # it shuffles itself

    def close(self) -> None:
        """See `Stage.close`; also frees the shared memory, which would outlive the process."""
        super().close()
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
