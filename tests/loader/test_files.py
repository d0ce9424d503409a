"""Image files from outside of a dataset."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loader import Loader, ResizeCenterCrop
from loader.files import load_files
from shard.dataset import Dataset
from shard.errors import FeedlineError


def test_files_are_as_the_loader_gives_them(images: Path, dataset: Dataset) -> None:
    paths = sorted((images / "val").rglob("*.jpg"))
    transform = ResizeCenterCrop(size=32, resize=36)
    found = load_files(paths, transform)
    with Loader(dataset, "val", transform, batch_size=len(paths), threads=1) as loader:
        batch = next(iter(loader))
    # A split is shuffled when it is packed: compared as sets.
    assert {image.tobytes() for image in found.numpy()} == {image.tobytes() for image in batch.images.numpy()}


def test_a_photo_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: what is on the left goes to the top
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=100, exif=exif)
    (found,) = load_files([tmp_path / "photo.jpg"], ResizeCenterCrop(size=40, resize=20)).float()
    assert found[2:18, 12:28].mean() > 250
    assert found[22:38, 12:28].mean() < 5


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    whole = tmp_path / "whole.jpg"
    Image.fromarray(torch.randint(0, 256, (60, 60, 3), dtype=torch.uint8).numpy()).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:1000])
    transform = ResizeCenterCrop(size=8, resize=8)
    for name, said in (
        ("text.jpg", "cannot read the image"),
        ("cut.jpg", "does not decode"),
        ("none", "No such file"),
    ):
        with pytest.raises(FeedlineError, match=said) as error:
            load_files([tmp_path / name], transform)
        assert name in str(error.value)
