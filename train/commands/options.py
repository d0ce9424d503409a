"""Flags that the commands have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from loader.resolve import resolve_device
from shard.errors import FeedlineError


def add_run(parser: argparse.ArgumentParser) -> None:
    """Which network, and a dataset."""
    add_network(parser)
    parser.add_argument("--data", metavar="DATASET", help="dataset folder or URL (default: the run's)")


def add_network(parser: argparse.ArgumentParser) -> None:
    """Which network."""
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder of `python -m train`")
    add(
        "--checkpoint",
        default="best",
        metavar="best|last|PATH",
        help="weights: of the best evaluation, the newest, or a file (default: best)",
    )
    add(
        "--weights",
        choices=("auto", "plain", "averaged"),
        default="auto",
        help="auto: the average of the weights where the run kept one (--ema-decay), else plain (default: auto)",
    )


def find_device(name: str) -> torch.device:
    """Device of that name; auto: a CUDA GPU where there is one.

    Raises:
        FeedlineError: no device of that name, or a GPU is asked for, and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise FeedlineError(f"--device is {name!r}, but torch finds no GPU; give --device cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise FeedlineError(f"--device is {name!r}; give auto, cpu, cuda, or cuda:1 and so on") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise FeedlineError(
            f"--device is {name!r}, but there are {torch.cuda.device_count()} GPUs, counted from 0"
        )
    return resolve_device(found)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def not_negative(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def with_suffix(suffix: str) -> Callable[[str], Path]:
    """Type of a path that has to end in `suffix`."""

    def path(text: str) -> Path:
        if not text.lower().endswith(suffix):
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {suffix}")
        return Path(text)

    return path


def size_text(size_bytes: int) -> str:
    """Size of a file for people."""
    return f"{size_bytes / 1e6:,.1f} MB"


def require_folder(path: Path) -> Path:
    """The run folder, if there is one.

    Raises:
        FeedlineError: there is no folder of that name.
    """
    if not path.is_dir():
        raise FeedlineError(f"RUN is {str(path)!r}, which is no folder; give the --run-dir of a training")
    return path
