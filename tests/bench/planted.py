"""Five trainings with a bottleneck that was planted, for `bench doctor` to find, through its real command.

    python -m tests.bench.planted --folder /tmp/planted --runs 5 --out record.json

builds small datasets, runs the command on each situation in turn and counts hits. The test suite runs one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from timm.models import register_model

import bench.doctor
from bench.__main__ import main
from bench.options import write
from bench.slow_server import SlowServer
from loader.reader import Encoded, _File
from shard.build import build
from shard.plan import Settings

TINY = "planted_tiny"


def planted_tiny(pretrained: bool = False, num_classes: int = 10, **_: object) -> torch.nn.Module:
    """A model that costs next to nothing, so that something else limits."""
    pool = torch.nn.AdaptiveAvgPool2d(2)
    return torch.nn.Sequential(pool, torch.nn.Flatten(), torch.nn.Linear(12, num_classes))


planted_tiny.__module__ = __name__
register_model(planted_tiny)


def make_dataset(folder: Path, count: int, side: int, shard_bytes: int = 64_000_000) -> Path:
    """A dataset of `count` images like photographs: smooth, with some grain; made once."""
    if (folder / "dataset.json").exists():
        return folder
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder.with_name(folder.name + "-images") / f"{i % 4}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (side // 16 + 1, side // 16 + 1, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = (pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=88)
    build(folder.with_name(folder.name + "-images"), folder, Settings(shard_bytes=shard_bytes), workers=1)
    return folder


@contextmanager
def sleeping_reader(folder: Path, seconds: float) -> Iterator[None]:
    """Every image in `folder` takes `seconds` to be read, by each of the reader's threads."""

    class Slow(_File):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.delay_s = seconds if folder in path.parents else 0.0

        def read(self, into: Encoded, offset: int) -> str | None:
            time.sleep(self.delay_s)
            return super().read(into, offset)

    with mock.patch("loader.reader._File", Slow):
        yield


@contextmanager
def slow_link(bytes_per_s: float) -> Iterator[None]:
    """Batches are copied to the device at this rate."""

    def copy(images: torch.Tensor) -> torch.Tensor:
        time.sleep(images.numel() / bytes_per_s)
        return images.clone()

    with mock.patch.object(bench.doctor, "device_copy", return_value=copy):
        yield


Situation = Callable[[Path], tuple[list[str], AbstractContextManager[object]]]


def storage(folder: Path) -> tuple[list[str], AbstractContextManager[object]]:
    """A disk that takes 5 ms per image and thread."""
    data = make_dataset(folder / "small", 256, 96)
    return ["--data", str(data), "--size", "64", "--model", TINY], sleeping_reader(data, 0.005)


def store(folder: Path) -> tuple[list[str], AbstractContextManager[object]]:
    """A store of 2 MB/s, through a cache of half the split's size."""
    data = make_dataset(folder / "sharded", 256, 96, shard_bytes=60_000)
    total = sum(path.stat().st_size for path in (data / "train").glob("*.tar"))
    server = SlowServer(data, latency_s=0.01, bytes_per_s=2e6)
    more = [
        "--shuffle",
        "window",
        "--window",
        "2",
        "--lanes",
        "1",
        "--cache",
        str(folder / "cache"),
        "--cache-gb",
        str(total / 2e9),
    ]
    return ["--data", server.url, "--size", "64", "--model", TINY, *more], server


def decode(folder: Path) -> tuple[list[str], AbstractContextManager[object]]:
    """Large photographs, small crops of them, a tiny model."""
    data = make_dataset(folder / "large", 64, 1280)
    flags = ["--data", str(data), "--size", "96", "--model", TINY, "--batch-size", "16"]
    return flags, contextlib.nullcontext()


def augment(folder: Path) -> tuple[list[str], AbstractContextManager[object]]:
    """Small images, a long policy, a tiny model."""
    data = make_dataset(folder / "medium", 256, 224)
    flags = ["--data", str(data), "--size", "224", "--model", TINY, "--augment", "rand-m9-n8-p1"]
    return flags, contextlib.nullcontext()


def host_to_device(folder: Path) -> tuple[list[str], AbstractContextManager[object]]:
    """A link of 2 MB/s."""
    data = make_dataset(folder / "small", 256, 96)
    return ["--data", str(data), "--size", "64", "--model", TINY], slow_link(2e6)


def model(folder: Path) -> tuple[list[str], AbstractContextManager[object]]:
    """A heavy model on small images."""
    data = make_dataset(folder / "small", 256, 96)
    flags = ["--data", str(data), "--size", "64", "--model", "resnet18", "--batch-size", "16"]
    return flags, contextlib.nullcontext()


SITUATIONS: dict[str, tuple[str, Situation]] = {
    "storage": ("storage", storage),
    "store": ("storage", store),
    "decode": ("decode", decode),
    "augment": ("augment", augment),
    "host-to-device": ("host-to-device", host_to_device),
    "model": ("model", model),
}


def diagnose(name: str, folder: Path, out: Path, *more: str) -> str:
    """Run the command on a situation; its words. The record goes to `out`."""
    flags, plant = SITUATIONS[name][1](folder)
    words, progress = io.StringIO(), io.StringIO()
    batch = [] if "--batch-size" in flags else ["--batch-size", "32"]
    with plant, contextlib.redirect_stdout(words), contextlib.redirect_stderr(progress):
        status = main(["doctor", *flags, *batch, "--out", str(out), *more])
    if status:
        raise RuntimeError(f"the doctor ended with status {status}: {progress.getvalue()}")
    return words.getvalue()


def campaign() -> int:
    """Run the situations that are asked for; 1 if a verdict was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default=",".join(SITUATIONS))
    parser.add_argument("--verify", action="store_true", help="measure the suggestions, and print the words")
    parser.add_argument("--out", type=Path, help="write a record with every verdict")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    quick = ["--repeats", "3", "--seconds", "0.4"] + ([] if options.verify else ["--no-verify"])
    verdicts: dict[str, list[str]] = {name: [] for name in options.only.split(",")}
    for _ in range(options.runs):
        for name, found in verdicts.items():
            words = diagnose(name, options.folder, options.folder / f"{name}.json", *quick)
            record = json.loads((options.folder / f"{name}.json").read_text())
            found.append(record["verdict"]["bottleneck"])
            print(f"{name}: {found[-1]}", words if options.verify else "", flush=True)
    right = {name: found.count(SITUATIONS[name][0]) for name, found in verdicts.items()}
    print(right, "of", options.runs)
    if options.out is not None:
        about = {"benchmark": "doctor-planted", "environment": record["environment"]}
        write({**about, "right": right, "of": options.runs, "verdicts": verdicts}, options.out)
    return 0 if all(hits == options.runs for hits in right.values()) else 1


if __name__ == "__main__":
    sys.exit(campaign())
