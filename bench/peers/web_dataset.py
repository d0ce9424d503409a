"""webdataset on our shards, as its ImageNet example has it: Pillow in worker processes, shards split among them."""

from __future__ import annotations

import webdataset

from bench.peers.augment import vision_transform
from bench.peers.base import Job, Peer


class WebDataset(Peer):
    """See `Peer`. Every worker's last batch is a partial one."""

    note = "shuffles through a buffer of 1,000"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        shards = [str(self.split.shard_path(i)) for i in range(len(self.split.shards))]
        dataset = (
            webdataset.WebDataset(shards, shardshuffle=len(shards))
            .shuffle(1000)
            .decode("pil")
            .to_tuple("jpg", "cls")
            .map_tuple(vision_transform(job), int)
            .batched(job.batch_size)
        )
        self._loader = webdataset.WebLoader(
            dataset,
            batch_size=None,
            num_workers=min(job.threads, len(shards)),  # a worker without a shard is an error there
            persistent_workers=True,
            pin_memory=job.device.type == "cuda",
        )
