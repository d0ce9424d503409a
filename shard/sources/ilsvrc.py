"""The official ImageNet downloads, read in place: a tar of 1,000 tars, a flat tar, and the devkit.

ILSVRC numbers its synsets in an order of its own. The labels that every trained model uses are positions in
the sorted list of WordNet ids, and so are those written here.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from shard.errors import FeedlineError
from shard.items import FileReader, Listing, same_classes, table
from shard.sources.tars import members

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKITS = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar")
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG$")


def list_ilsvrc(root: Path, classes: tuple[str, ...] | None) -> Listing:
    """List the official tars in the folder `root`; samples are named as in the class-folder layout.

    Raises:
        FeedlineError: no tar, or one cut off; the devkit is missing or does not fit; a class is not in `classes`.
    """
    containers = tuple(str(root / name) for name in (TRAIN, VAL) if (root / name).exists())
    if not containers:
        raise FeedlineError(f"{root} holds neither {TRAIN} nor {VAL}; give the folder of the official tars")
    found: dict[str, list[tuple[str, str, int, int]]] = {}  # split: [(source, wnid, offset, size)]
    if (root / TRAIN).exists():
        found["train"] = list(_train(root / TRAIN))
    if (root / VAL).exists():
        found["val"] = list(_val(root / VAL, _devkit(root)))
    wnids = {split: sorted({wnid for _, wnid, _, _ in entries}) for split, entries in found.items()}
    known = tuple(next(iter(wnids.values()))) if classes is None else classes
    for split, here in wnids.items():
        if classes is None or set(here) - set(known):
            same_classes(known, here, f"{root} ({split})")
    labels = {wnid: label for label, wnid in enumerate(known)}
    listing = Listing(kind="ilsvrc", classes=known, splits={}, reader=FileReader(str(root), containers))
    for number, (split, entries) in enumerate(found.items()):
        listing.splits[split] = _table(entries, labels, number, os.stat(containers[number]).st_mtime_ns)
    return listing


def _table(
    entries: list[tuple[str, str, int, int]], labels: dict[str, int], number: int, mtime_ns: int
) -> pa.Table:
    sources, wnids, offsets, sizes = zip(*entries, strict=True)
    return table(
        [source.encode() for source in sources],
        [labels[wnid] for wnid in wnids],
        sizes,
        containers=number,
        offsets=offsets,
        mtimes_ns=mtime_ns,
    )


def _train(path: Path) -> Iterator[tuple[str, str, int, int]]:
    empty = True
    with path.open("rb") as outer, path.open("rb") as inner:
        for tar in members(outer, str(path)):
            wnid, suffix = os.path.splitext(os.path.basename(tar.name))
            if suffix != ".tar":
                raise FeedlineError(
                    f"{path} holds {tar.name}, expected one tar per class: is it the official file?"
                )
            for image in members(inner, f"{path}, {tar.name},", tar.offset):
                empty = False
                yield f"train/{wnid}/{os.path.basename(image.name)}", wnid, image.offset, image.size
    if empty:
        raise FeedlineError(f"{path} holds no images: is it the official file?")


def _val(path: Path, wnid_of: dict[int, str]) -> Iterator[tuple[str, str, int, int]]:
    with path.open("rb") as file:
        numbers = set()
        for image in members(file, str(path)):
            match = _VAL_NAME.search(image.name)
            if match is None or int(match[1]) not in wnid_of:
                raise FeedlineError(
                    f"{path} holds {image.name}, for which the devkit has no label; are both of ILSVRC2012?"
                )
            numbers.add(int(match[1]))
            wnid = wnid_of[int(match[1])]
            yield f"val/{wnid}/{match[0]}", wnid, image.offset, image.size
    if len(numbers) != len(wnid_of):
        raise FeedlineError(
            f"{path} holds {len(numbers)} images, the devkit labels {len(wnid_of)}; download it again"
        )


def _devkit(root: Path) -> dict[int, str]:
    """WordNet id by number of the validation image, from 1."""
    from scipy.io import loadmat  # slow to import, and nothing else needs it

    path = next((root / name for name in DEVKITS if (root / name).exists()), None)
    if path is None:
        raise FeedlineError(
            f"{root / VAL} has no labels in it; put {DEVKITS[0]} beside it, or move it away to pack train alone"
        )
    try:
        with tarfile.open(path) as tar:
            files = {os.path.basename(member.name): member for member in tar if member.isfile()}
            meta, truth = (tar.extractfile(files[name]) for name in ("meta.mat", _GROUND_TRUTH))
            assert meta is not None  # both are regular files
            assert truth is not None
            synsets = loadmat(io.BytesIO(meta.read()), squeeze_me=True)["synsets"]
            wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets.ravel()}
            numbers = [int(line) for line in truth.read().split()]
            return {i: wnids[number] for i, number in enumerate(numbers, start=1)}
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError, TypeError) as error:
        raise FeedlineError(f"cannot read the devkit {path}: {error!r}; download it again") from error
