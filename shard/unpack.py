"""Give a dataset back as class folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from shard.dataset import Dataset, Split, read_sources
from shard.duplicates import read_image
from shard.errors import FeedlineError
from shard.storage import write_whole
from shard.verify import Progress


def unpack(
    dataset: Dataset,
    destination: str | Path,
    *,
    splits: tuple[str, ...] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> int:
    """Write every image to `destination`/<split>/<class>/<name>, with the bytes that the shards hold.

    The name is that of the source file; where a class has it twice, the sample's key is put before it, and
    what is no JPEG by its name gets `.jpg` behind it.

    Args:
        dataset: what to unpack.
        destination: a new or empty folder.
        splits: which; None: all.
        progress: called as the work goes on.

    Returns:
        The number of images.

    Raises:
        FeedlineError: the folder is not empty, a class cannot be a folder's name, or a shard cannot be read.
    """
    root = Path(destination)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FeedlineError(f"{root} is not an empty folder; choose a new one")
    for name in dataset.classes:
        if name in (".", "..", "") or "/" in name or "\0" in name:
            raise FeedlineError(f"class {name!r} cannot be the name of a folder")
    chosen = [dataset.split(name) for name in splits or dataset.split_names]
    total, done = sum(map(len, chosen)), 0
    for split in chosen:
        for label in np.unique(split.label).tolist():
            (root / split.name / dataset.classes[label]).mkdir(parents=True, exist_ok=True)
        for i, name in _names(split):
            path = root / split.name / dataset.classes[int(split.label[i])] / name
            with write_whole(path, path.parent) as file:
                file.write(read_image(split, i))
            done += 1
            progress("unpacking images", done, total)
    return total


def _names(split: Split) -> Iterator[tuple[int, str]]:
    """File name of every sample."""
    sources = read_sources(split.root)
    taken: set[tuple[int, str]] = set()
    for i in range(len(split)):
        name = PurePosixPath(sources[i].as_py()).name
        if not name.lower().endswith((".jpg", ".jpeg", ".jpe", ".jfif")):
            name += ".jpg"
        if (int(split.label[i]), name) in taken:
            name = f"{split.key(i).replace('/', '_')}-{name}"
        taken.add((int(split.label[i]), name))
        yield i, name
