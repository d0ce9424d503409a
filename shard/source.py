"""What to pack: class folders, scanned into items."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shard.errors import FeedlineError

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"]
)
SPLIT_NAMES = ("train", "val", "validation", "test")


@dataclass(frozen=True, slots=True)
class Item:
    """One image file.

    Attributes:
        path: relative to the source folder, with forward slashes.
        label: index into the class list.
        size_bytes: as the file system says.
        mtime_ns: likewise; part of the plan's fingerprint, so that a changed file is noticed.
    """

    path: str
    label: int
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Source:
    """A scanned source folder.

    Attributes:
        classes: class names by label, sorted.
        items: by split, in no particular order.
        ignored: by split, paths of files that do not claim to be images.
    """

    root: Path
    classes: tuple[str, ...]
    items: dict[str, list[Item]]
    ignored: dict[str, list[str]]


def scan(root: Path) -> Source:
    """Scan class folders, or a folder with `train/` and others (`val/`, `test/`) of class folders.

    Classes are the sorted folder names, as torchvision's ImageFolder numbers them. Folders below a class
    are walked, symbolic links followed, hidden files left out.

    Raises:
        FeedlineError: no such folder, no classes, an empty class, or splits with different classes.
    """
    if not root.is_dir():
        raise FeedlineError(
            f"{root} is not a folder; give a folder of class folders, or one with train/ in it"
        )
    names = _folders(root)
    splits = {n: root / n for n in names if n in SPLIT_NAMES} if "train" in names else {"train": root}
    if "train" in names and (stray := sorted(set(names) - set(splits))):
        raise FeedlineError(
            f"{root} holds train/ and also {', '.join(stray[:5])}; beside train/ only "
            f"{', '.join(SPLIT_NAMES[1:])} are splits: move the others away"
        )
    classes = {split: _folders(folder) for split, folder in splits.items()}
    for split, found in classes.items():
        if not found:
            raise FeedlineError(
                f"{splits[split]} has no class folders; expected {splits[split]}/<class>/<image>.jpg"
            )
        _require_same(classes["train"], found, splits[split])
    source = Source(root, tuple(classes["train"]), {}, {})
    for split, folder in splits.items():
        source.items[split], source.ignored[split] = _scan_split(root, folder, source.classes)
    return source


def _folders(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def _require_same(train: list[str], other: list[str], folder: Path) -> None:
    missing, extra = sorted(set(train) - set(other)), sorted(set(other) - set(train))
    if missing or extra:
        parts = [f"lacks {', '.join(missing[:5])}"] if missing else []
        parts += [f"has besides {', '.join(extra[:5])}"] if extra else []
        raise FeedlineError(
            f"the classes of {folder} differ from train's: it {' and '.join(parts)} "
            f"({len(missing)} missing, {len(extra)} extra); all splits need the same class folders"
        )


def _scan_split(root: Path, folder: Path, classes: tuple[str, ...]) -> tuple[list[Item], list[str]]:
    items: list[Item] = []
    ignored: list[str] = []
    for label, name in enumerate(classes):
        before = len(items)
        for parent, folders, files in os.walk(folder / name, followlinks=True):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for file in files:
                if file.startswith("."):
                    continue
                path = Path(parent, file)
                relative = path.relative_to(root).as_posix()
                if path.suffix.lower() not in IMAGE_SUFFIXES:
                    ignored.append(relative)
                    continue
                status = path.stat()
                items.append(Item(relative, label, status.st_size, status.st_mtime_ns))
        if len(items) == before:
            raise FeedlineError(f"class folder {folder / name} holds no image; fill it or remove it")
    return items, ignored
