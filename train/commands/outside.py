"""What the commands that take images from outside have in common: whether photos are turned upright."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from shard.image import Exif
from train.predict.writers import printable
from train.trained import Trained


def add_exif(parser: argparse.ArgumentParser) -> None:
    """Add the flag."""
    parser.add_argument(
        "--exif",
        choices=("strip", "apply"),
        help="apply turns images upright as their camera noted, strip leaves their pixels as they are stored "
        "(default: as the run's dataset was built)",
    )


def with_exif(trained: Trained, exif: Exif | None) -> Trained:
    """The same network, with images from outside turned as the flag says."""
    return trained if exif is None else replace(trained, images=replace(trained.images, exif=exif))


def lines() -> Iterator[str]:
    """Names on standard input, which need not be UTF-8."""
    for line in sys.stdin.buffer:
        yield os.fsdecode(line)


def tell_sideways(names: Sequence[str], exif: str | None) -> None:
    """Say that images were not turned upright, unless the flag asked for that."""
    if names and exif is None:
        first = printable(names[0])
        who = f"{len(names):,} images are not upright ({first} …)" if names[1:] else f"{first} is not upright"
        print(
            f"note: {who}, as the camera noted, and the run's dataset was built without turning such images; "
            "--exif apply turns them",
            file=sys.stderr,
        )
