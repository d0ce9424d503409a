"""Give a dataset back as class folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from shard.dataset import Dataset, Split, image_in, read_sources
from shard.errors import FeedlineError
from shard.labels import require_single
from shard.storage import local_copy, storage_errors
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
        FeedlineError: the folder is not empty, a class cannot be a folder's name, a shard cannot be read or is
            damaged, or the dataset is multi-label.
    """
    require_single(
        dataset.multi_label, "unpack", "class folders hold one class a sample; use `tar xf` on the shards"
    )
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
            folder = root / split.name / dataset.classes[label]
            with storage_errors("make", folder):
                folder.mkdir(parents=True, exist_ok=True)
        paths = list(_paths(split, dataset.classes, root / split.name))
        for number in range(len(split.shards)):
            path = split.shard_path(number)
            with storage_errors("read", path), local_copy(path) as tar, tar.open("rb") as shard:
                for i in np.flatnonzero(split.shard == number).tolist():
                    _write(paths[i], image_in(shard, split, i))
                    done += 1
            progress("unpacking images", done, total)
    return total


def _paths(split: Split, classes: tuple[str, ...], root: Path) -> Iterator[Path]:
    """Path of every sample."""
    sources = read_sources(split.root).to_pylist()
    taken: set[Path] = set()
    for i, (source, label) in enumerate(zip(sources, split.label.tolist(), strict=True)):
        name = PurePosixPath(source).name
        if not name.lower().endswith((".jpg", ".jpeg", ".jpe", ".jfif")):
            name += ".jpg"
        path = root / classes[label] / name
        if path in taken:
            path = path.with_name(f"{split.key(i).replace('/', '_')}-{name}")
        taken.add(path)
        yield path


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except BaseException as error:
        path.unlink(missing_ok=True)  # half a file is worse than none
        if isinstance(error, OSError):
            raise FeedlineError(
                f"cannot write {path}: {error.strerror}; make room and unpack anew"
            ) from error
        raise
