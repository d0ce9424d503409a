"""webdataset's ShardWriter, as its documentation uses it: one process, files of class folders in random order.

python -m bench.peers.shardwriter SRC DST SHARD_BYTES
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import webdataset


def write(source: Path, destination: Path, shard_bytes: int) -> None:
    """Pack class folders into shards, nothing checked."""
    classes = sorted(folder.name for folder in source.iterdir())
    files = [
        (path, label) for label, name in enumerate(classes) for path in sorted((source / name).iterdir())
    ]
    random.Random(0).shuffle(files)
    destination.mkdir(parents=True)
    pattern = str(destination / "shard-%06d.tar")
    with webdataset.ShardWriter(pattern, maxsize=shard_bytes, maxcount=10**9, verbose=0) as writer:
        for i, (path, label) in enumerate(files):
            writer.write({"__key__": f"{i:010d}", "jpg": path.read_bytes(), "cls": label})


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
