"""Class folders: SRC/<class>/…/image, or SRC/<split>/<class>/…/image."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from shard.errors import FeedlineError
from shard.items import BESIDE_ITS_IMAGE, UNREAD_SUFFIXES, FileReader, Listing, join, same_classes, table

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".jp2", ".avif", ".mpo"),
)
SPLIT_NAMES = ("train", "val", "validation", "test")
_MAX_DEPTH = 40  # a symbolic link that leads upwards would never end


def list_folders(root: Path, classes: tuple[str, ...] | None) -> Listing:
    """List class folders, or a folder with `train/` and others (`val/`, `test/`) of class folders.

    Classes are the sorted folder names, as torchvision's ImageFolder numbers them. Folders below a class
    are walked, symbolic links followed, hidden files left out.

    Args:
        root: the folder.
        classes: the class list, if it is given from outside.

    Raises:
        FeedlineError: no such folder, no classes, an empty class, or splits with different classes.
    """
    if not root.is_dir():
        raise FeedlineError(
            f"{root} does not exist; give a folder of class folders, or one with train/ in it"
        )
    names = _folders(root)
    inside = [name for name in names if name in SPLIT_NAMES]
    nested = "train" in inside or (bool(inside) and inside == names)
    if nested and (stray := sorted(set(names) - set(inside))):
        raise FeedlineError(
            f"{root} holds {inside[0]}/ and also {', '.join(stray[:5])}; beside splits ({', '.join(SPLIT_NAMES)}) "
            "there must be no other folders: move them away"
        )
    splits = {name: root / name for name in inside} if nested else {"train": root}
    found = {split: _folders(folder) for split, folder in splits.items()}
    for split, folders in found.items():
        if not folders:
            raise FeedlineError(
                f"{splits[split]} has no class folders; expected {splits[split]}/<class>/<image>.jpg"
            )
    known = tuple(next(iter(found.values()))) if classes is None else classes
    listing = Listing(kind="folders", classes=known, splits={}, reader=FileReader(str(root)))
    for split, folders in found.items():
        if classes is None:
            same_classes(known, folders, splits[split])
        elif strange := sorted(set(folders) - set(known)):
            raise FeedlineError(
                f"{splits[split]} has class folders that --classes does not list: {', '.join(strange[:5])} "
                f"({len(strange)} in all); add them to the list or move them away"
            )
        labels = {name: label for label, name in enumerate(known)}
        prefix = f"{split}/" if nested else ""
        parts = [_list_class(root, split, f"{prefix}{name}", labels[name], listing) for name in folders]
        listing.splits[split] = join(parts)
    return listing


def _folders(folder: Path) -> list[str]:
    try:
        found = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise FeedlineError(f"cannot read the folder {folder}: {error.strerror}") from error
    for name in found:
        if any("\ud800" <= c <= "\udfff" for c in name):  # stand for bytes, and can be written nowhere
            raise FeedlineError(
                f"{folder} has a folder whose name is not UTF-8: {os.fsencode(name)!r}; rename it"
            )
    return found


def _list_class(root: Path, split: str, folder: str, label: int, listing: Listing) -> pa.Table:
    names: list[bytes] = []
    sizes: list[int] = []
    times: list[int] = []
    found = list(_walk(os.fspath(root), folder, 0))
    images = {_stem(name) for _, name in found if name.lower().endswith(IMAGE_SUFFIXES)}
    for entry, name in found:
        if not name.lower().endswith(IMAGE_SUFFIXES):
            reason = "not an image file name"
            if name.lower().endswith(UNREAD_SUFFIXES):
                paired = (
                    _stem(name) in images or name.lower() in images
                )  # IMG_1.HEIC beside IMG_1.jpg, IMG_1.HEIC.jpg
                reason = BESIDE_ITS_IMAGE if paired else "a format that is not read: save it as JPEG"
            listing.ignored.append({"source": name, "split": split, "reason": reason})
            continue
        try:
            status = entry.stat()
        except OSError as error:
            raise FeedlineError(
                f"cannot read {root}/{name}: {error.strerror}; restore it or remove the broken link"
            ) from error
        if not stat.S_ISREG(status.st_mode):  # reading a named pipe would wait forever
            listing.ignored.append({"source": name, "split": split, "reason": "not a file"})
            continue
        names.append(os.fsencode(name))
        sizes.append(status.st_size)
        times.append(status.st_mtime_ns)
    if not names:
        raise FeedlineError(f"class folder {root / folder} holds no image; fill it or remove it")
    return table(names, label, sizes, mtimes_ns=times)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].lower()


def _walk(root: str, folder: str, depth: int) -> Iterator[tuple[os.DirEntry[str], str]]:
    if depth > _MAX_DEPTH:
        raise FeedlineError(
            f"{root}/{folder} is more than {_MAX_DEPTH} folders deep; remove the symbolic link that leads upwards"
        )
    try:
        entries = [entry for entry in os.scandir(f"{root}/{folder}") if not entry.name.startswith(".")]
    except OSError as error:
        raise FeedlineError(f"cannot read the folder {root}/{folder}: {error.strerror}") from error
    for entry in entries:
        name = f"{folder}/{entry.name}"
        if entry.is_dir():
            yield from _walk(root, name, depth + 1)
        else:
            yield entry, name
