"""`python -m train.replay RUN`: the images of the batch at which a run stopped being finite, as they were trained on
(before mixup and CutMix).

RUN/nonfinite.json names the step and the loader's position before it; with RUN/config.yaml that is all it takes:

    config, found = load(RUN / "config.yaml"), json.loads((RUN / "nonfinite.json").read_text())
    loader = train_loader(config.input, Dataset.open(config.data), config.seed, 1, World())
    loader.set_epoch(found["epoch"])
    loader.samples_consumed = found["samples_consumed"]
    batch = next(iter(loader))                    # the global batch, whatever the number of ranks was
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from PIL import Image

from loader import Batch
from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.labels import label_text
from train.build import length_of
from train.config import load
from train.distributed import World
from train.inputs import train_loader
from train.multi_label import label_lists
from train.resolution import size_at
from train.run_folder import RunFolder


def replay(run: Path, data: str | None = None) -> tuple[Batch, list[int]]:
    """Return the global batch at which the run broke, and the sample ids that it blames.

    Args:
        run: the run folder.
        data: the dataset, where it is no longer where the run had it.

    Raises:
        FeedlineError: the run has no nonfinite.json, or its dataset is gone or another one.
    """
    folder = RunFolder(run)
    if not folder.nonfinite.exists():
        raise FeedlineError(
            f"there is no {folder.nonfinite}: this run has not met a value that is not finite"
        )
    found = json.loads(folder.nonfinite.read_text(encoding="utf-8"))
    config = load(folder.config)
    source = data or config.data
    if source is None:
        raise FeedlineError(f"{folder.config} names no dataset; give --data DATASET")
    world, dataset = World(device=torch.device("cpu")), Dataset.open(source)
    sides = size_at(config.resolution, config.input.size, length_of(config, dataset))
    with train_loader(config.input, dataset, config.seed, 1, world, sides) as loader:
        position = {"epoch": found["epoch"], "samples_consumed": found["samples_consumed"]}
        loader.load_state_dict(loader.state_dict() | position)
        batch = next(iter(loader))
    blamed = found["sample_ids"]
    if not set(blamed) <= set(batch.ids.tolist()):
        raise FeedlineError(
            f"{source} is not the dataset that {run} was trained on: its batch has other samples"
        )
    return batch, blamed


def write(batch: Batch, blamed: list[int], classes: tuple[str, ...], out: Path) -> list[Path]:
    """Write the blamed samples' images as PNG, named by sample id and class."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for pixels, label, sample in zip(
        batch.images, label_lists(batch.labels), batch.ids.tolist(), strict=True
    ):
        if sample in blamed:
            name = label_text(label, classes).replace("/", "_")[:60]  # a file's name has room for 255 bytes
            path = out / f"{sample}-{name}.png"
            Image.fromarray(pixels.numpy()).save(path)
            paths.append(path)
    return paths


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m train.replay", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder with a nonfinite.json")
    parser.add_argument("--data", help="dataset, if it has moved")
    parser.add_argument("--out", type=Path, help="where images go (default: RUN/nonfinite)")
    options = parser.parse_args(argv)
    try:
        batch, blamed = replay(options.run, options.data)
        source = options.data or load(RunFolder(options.run).config).data
        assert source is not None
        paths = write(batch, blamed, Dataset.open(source).classes, options.out or options.run / "nonfinite")
    except (FeedlineError, OSError) as error:  # of a folder that cannot be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
