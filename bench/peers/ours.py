"""Our loader, as one of the contestants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.peers.base import Job, Peer
from loader import Compose, Loader, parse_policy


class Ours(Peer):
    """See `Peer`."""

    output = "uint8 NHWC"
    note = "decodes the crop's window alone (DALI on a GPU all)"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        transform = Compose(job.crop, (parse_policy(job.augment),)) if job.augment else job.crop
        self._loader = Loader(
            job.data, job.split, transform, batch_size=job.batch_size, shuffle=True, drop_last=True,
            device=job.device, threads=job.threads,
        )  # fmt: skip
        self.note = f"{self._loader.backend} backend; {self.note}"

    def epoch(self) -> Iterator[tuple[Any, Any]]:
        """See `Peer.epoch`."""
        for batch in self._loader:
            yield batch.images, batch.labels

    def close(self) -> None:
        """See `Stage.close`."""
        self._loader.close()
        super().close()
