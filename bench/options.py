"""What the benchmark's commands share on their command lines."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from shard.errors import FeedlineError
from train.config import Config
from train.recipes import RECIPES, recipe
from train.whole import whole

Add = Callable[..., argparse.Action]  # a command's `add_argument`
_DEFAULTS: dict[str, Any] = {"model": "resnet18", "size": 224, "batch_size": 64}


def add_data(add: Add, *, without: str = "") -> None:
    """Flag of a dataset on a disk; `without` says when it may be missing."""
    add(
        "--data",
        type=local_folder,
        required=not without,
        metavar="DATASET",
        help=f"folder made by `python -m shard build`{without}",
    )


def add_training(
    add: Add, defaults: Mapping[str, object] = _DEFAULTS, batch: str = "images per step"
) -> None:
    """Flags that `training_config` reads; `defaults` without a recipe, and what a batch is, are for their help."""
    add("--recipe", choices=sorted(RECIPES), help="training recipe to measure (default: the settings below)")
    add("--split", help="split to read (default: the recipe's training split)")
    default = {name: f"(default: the recipe's, or {value})" for name, value in defaults.items()}
    add("--model", help=f"any timm model {default['model']}")
    add("--size", type=positive, help=f"side of the model's input, pixels {default['size']}")
    add("--batch-size", type=positive, help=f"{batch} {default['batch_size']}")


def add_device(add: Add, default: str | None = "auto") -> None:
    """Flag that `find_device` reads."""
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default=default,
        help="auto: a CUDA GPU where there is one (the default)",
    )


def training_config(options: argparse.Namespace) -> Config:
    """Take the recipe's configuration with the flags' values."""
    config = recipe(options.recipe) if options.recipe else Config()
    chosen = {
        "train_split": options.split,
        "size": options.size,
        "batch_size": options.batch_size or (None if options.recipe else _DEFAULTS["batch_size"]),
        "loader_backend": options.backend,
    }
    images = dataclasses.replace(config.input, **{k: v for k, v in chosen.items() if v is not None})
    arch = options.model or (config.model.arch if options.recipe else _DEFAULTS["model"])
    model = dataclasses.replace(config.model, arch=arch)
    data = str(options.data) if options.data is not None else None
    return dataclasses.replace(config, data=data, input=images, model=model)


def find_device(name: str) -> torch.device:
    """Device of `--device auto | cpu | cuda`.

    Raises:
        FeedlineError: a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise FeedlineError("--device is cuda, but this machine has no usable CUDA GPU; use cpu or auto")
    gpu = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")


def positive(text: str) -> int:
    """Whole number of at least 1, as argparse's `type`."""
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def require_positive(value: float, flag: str = "--seconds") -> None:
    """Raise FeedlineError for a number that is not positive, or no number, or not finite."""
    if not 0 < value < math.inf:
        raise FeedlineError(f"{flag} is {value}; it must be positive")


def local_folder(text: str) -> Path:
    """Path of a dataset on a disk, as argparse's `type`: a path would swallow half of a URL's slashes."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is a URL; this command measures a dataset on a disk")
    return Path(text)


def require_writable(file: Path | None) -> None:
    """Raise FeedlineError where a result cannot be written: now, and not after minutes of measuring."""
    if file is None:
        return
    folder = file.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FeedlineError(
            f"{file} cannot be written, as {folder} takes no files: {error.strerror}"
        ) from error
    if file.is_dir():
        raise FeedlineError(f"{file} is a folder, a file is to be written there; choose another --out")


def say(text: str) -> None:
    """Print a line of progress, where it does not mix with the results."""
    print(text, file=sys.stderr)


def write(record: dict[str, Any], file: Path) -> None:
    """Write the record as JSON.

    Raises:
        FeedlineError: the disk does not take it.
    """
    with whole(file) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")


def publish(record: dict[str, Any], text: str, *, as_json: bool, file: Path | None) -> None:
    """Print the record, as text or as JSON, and write it to `file` too."""
    if file is not None:
        write(record, file)
        say(f"record: {file}")
    print(json.dumps(record) if as_json else text)
