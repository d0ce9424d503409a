"""A small dataset of coloured tiles, and ways to run the training program on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shard.__main__ import main as shard_main
from tests.ports import free_port
from tests.train.judged import lively_run
from train.__main__ import main
from train.trained import Trained, load_trained

CLASSES = 6
TRAIN, VAL = 20, 7  # images per class; 42 in val: no whole number of batches


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of 24 × 24 tiles: 120 for training and 42 for evaluation, in 6 colours with noise."""
    root = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for label in range(CLASSES):
            folder = root / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            colour = np.array([label & 1, label >> 1 & 1, label >> 2 & 1]) * 60 + 90
            for i in range(count):
                tile = np.clip(colour + rng.normal(0, 40, (24, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(tile).save(folder / f"{i}.jpg", quality=95)
    assert shard_main(["build", str(root / "images"), str(root / "dataset"), "--workers", "1"]) == 0
    return root / "dataset"


@pytest.fixture(scope="session")
def lively_dir(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a network that tells the tiles apart."""
    return lively_run(tmp_path_factory.mktemp("lively") / "run", dataset_dir)


@pytest.fixture(scope="session")
def lively(lively_dir: Path) -> Trained:
    """That network, with two threads to decode."""
    found = load_trained(lively_dir)
    given = replace(found.config.input, loader_threads=2)
    return replace(found, config=replace(found.config, input=given))


@pytest.fixture(scope="session")
def photos(dataset_dir: Path) -> list[bytes]:
    """A tile of each class, as a file's bytes."""
    folder = dataset_dir.parent / "images" / "val"
    return [(folder / f"class{label}" / "2.jpg").read_bytes() for label in range(CLASSES)]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread: the models are so small that waking a second one takes longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def flags(dataset_dir: Path) -> list[str]:
    """Flags of a training that takes a second: 15 steps an epoch, 3 epochs."""
    text = (
        f"--data {dataset_dir} --recipe digits --device cpu --arch test_efficientnet --batch-size 8 --size 24 "
        "--pad 2 --eval-size 24 --eval-resize 24 --epochs 3 --warmup-epochs 1 --lr 0.02 --log-every 4 "
        "--loader-threads 1"
    )
    return text.split()


@pytest.fixture(scope="session")
def start_ranks() -> Callable[[list[str], int], list[subprocess.Popen[bytes]]]:
    """Start the ranks of `python -m train` as torchrun does, but as our own children: they can be killed."""

    def start(flags: list[str], size: int) -> list[subprocess.Popen[bytes]]:
        port = free_port()
        shared = {
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        return [
            subprocess.Popen(
                [sys.executable, "-m", "train", *flags],
                env={**os.environ, **{k: str(v) for k, v in {**shared, "RANK": r, "LOCAL_RANK": r}.items()}},
            )
            for r in range(size)
        ]

    return start


@pytest.fixture(scope="session")
def several_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of grey tiles that are red, or have a white mark at the left, or both, or neither: 96 and 30."""
    root = tmp_path_factory.mktemp("attributes")
    rng = np.random.default_rng(0)
    rows = ["path,label,split"]
    for i in range(126):
        pixels = rng.normal(100, 60, (16, 16, 3))
        red, left = rng.random(2) < 0.5
        pixels[..., 0] += 21 * red
        pixels[4:12, 1:5] += 45 * left
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / f"{i}.jpg", quality=95)
        names = "|".join(name for name, there in (("red", red), ("left", left)) if there)
        rows.append(f"{i}.jpg,{names},{'train' if i < 96 else 'val'}")
    (root / "list.csv").write_text("\n".join(rows))
    command = ["build", str(root / "list.csv"), str(root / "data"), "--multi-label", "--workers", "1"]
    assert shard_main(command) == 0
    return root / "data"


@pytest.fixture(scope="session")
def several_flags(several_data: Path) -> list[str]:
    """Flags of a training on it, of a few seconds."""
    text = (
        f"--data {several_data} --recipe digits --device cpu --arch test_efficientnet --batch-size 8 --size 16 --pad 0 "
        f"--hflip 0 --eval-size 16 --eval-resize 16 --epochs 4 --warmup-epochs 1 --lr 0.02 --log-every 4 "
        "--loader-threads 1"
    )
    return text.split()


@pytest.fixture(scope="session")
def several_run(several_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its run folder."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    assert main([*several_flags, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def several_judged(several_run: Path) -> Path:
    """Folder of that run's evaluation."""
    assert main(["eval", str(several_run), "--device", "cpu", "--batch-size", "8"]) == 0
    return several_run / "eval" / "data-val-best"


@pytest.fixture(scope="session")
def reported(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with its report."""
    root = tmp_path_factory.mktemp("run") / "mine"
    assert main([*flags, "--epochs", "2", "--lr", "1e-4", "--run-dir", str(root)]) == 0
    assert main(["report", str(root)]) == 0
    return root
