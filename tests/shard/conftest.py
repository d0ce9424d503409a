"""A miniature ImageNet, as class folders and packed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from shard.build import build
from shard.plan import Settings
from tests.conftest import write_images

SMALL = Settings(shard_bytes=60_000)
WNIDS = ("n01440764", "n01443537", "n02123045", "n03000684")


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders as people unpack ImageNet."""
    root = tmp_path_factory.mktemp("imagenet")
    write_images(root / "train", 8, WNIDS)
    write_images(root / "val", 3, WNIDS, seed=1)
    for path in sorted((root / "train").rglob("*.jpg")):
        path.rename(path.with_name(f"{path.parent.name}_{path.stem}.JPEG"))
    val = sorted((root / "val").rglob("*.jpg"), key=lambda path: path.name)
    for number, path in enumerate(val, start=1):
        path.rename(path.with_name(f"ILSVRC2012_val_{number:08d}.JPEG"))
    return root


@pytest.fixture(scope="session")
def packed(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed") / "data"
    build(imagenet, root, SMALL, workers=1)
    return root


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
