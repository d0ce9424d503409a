"""Shared fixtures. Tests make their own small data; nothing outside the repository is read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from shard.build import build
from shard.dataset import Dataset
from shard.plan import Settings

# torch asks for it at the first product on a GPU, and later tests are of `--deterministic`.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# The same examples on every run, and no deadlines: the machine that runs the tests may be busy.
settings.register_profile("feedline", derandomize=True, deadline=None)
settings.load_profile("feedline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device (the only reason a test is ever skipped)."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))


def write_images(
    root: Path, per_class: int, classes: tuple[str, ...] = ("ant", "bee", "cat"), seed: int = 0
) -> None:
    """Write JPEG class folders; the class shows in the colour, so that a network can learn it."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            width, height = rng.integers(40, 90, 2).tolist()
            pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
            pixels[:, :, label % 3] += 120
            Image.fromarray(pixels).save(root / name / f"{i:03d}.jpg", quality=90)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ (3 × 21 images) and val/ (3 × 7)."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", 21)
    write_images(root / "val", 7, seed=1)
    return root


@pytest.fixture(scope="session")
def dataset(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The images of `images` as a dataset of several shards. Not to be changed by a test."""
    root = tmp_path_factory.mktemp("dataset") / "data"
    build(images, root, Settings(shard_bytes=80_000), workers=1)
    return Dataset.open(root)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of a bucket; the environment tells every process how to reach it. One for all tests: fsspec keeps clients."""
    from moto.server import (
        ThreadedMotoServer,
    )  # only here: a machine lent for the tests marked `gpu` has none

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()
