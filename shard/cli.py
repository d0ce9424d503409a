"""The flags of `python -m shard`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from typing import Any

from shard.image import KEEPABLE
from shard.plan import Settings
from shard.sources import KINDS

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
Run = Callable[[argparse.Namespace], int]


def parser(commands: Mapping[str, Run]) -> argparse.ArgumentParser:
    """Make the parser; `commands` gives the function that runs each command."""
    top = argparse.ArgumentParser(
        prog="python -m shard",
        description="Pack images into verified WebDataset shards, and look after them.",
        allow_abbrev=False,
    )
    adder = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (add, summary, description) in _COMMANDS.items():
        command = adder.add_parser(name, help=summary, description=description, allow_abbrev=False)
        add(command)
        command.add_argument("--json", action="store_true", help="print the result as JSON, for programs")
        command.set_defaults(run=commands[name])
    return top


def _build(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source", metavar="SRC",
        help="class folders (SRC/<class>/…, or SRC/train/<class>/… and SRC/val/<class>/…); a folder with the official "
        "ILSVRC2012 tars; Parquet files with embedded images; a .csv, .tsv or .jsonl list of path, label (and "
        "split); WebDataset tars. Parquet and tars may be globs and URLs such as s3://bucket/folder",
    )  # fmt: skip
    command.add_argument("destination", metavar="DST", help="folder or URL (s3://, gs://, …) for the dataset")
    command.add_argument(
        "--source",
        dest="kind",
        choices=("auto", *KINDS),
        default="auto",
        help="what SRC is (default: found out)",
    )
    command.add_argument("--classes", metavar="FILE", help="class list, one name a line; fixes the labels")
    command.add_argument(
        "--multi-label", action="store_true",
        help="a sample may be of several classes, or of none: in a list, label names them with | between, as in "
        "red|left (in .jsonl also as a list); in Parquet it is a list of whole numbers",
    )  # fmt: skip
    command.add_argument("--splits", metavar="A,B", type=_names, help="pack only these splits (default: all)")
    command.add_argument(
        "--subset", metavar="SPEC",
        help="pack a part: classes=10,per-class=50,seed=0 (each may be missing), chosen at random but always alike",
    )  # fmt: skip
    command.add_argument(
        "--val", type=_share, metavar="SHARE",
        help="hold out this share of each class, such as 20%%, as split val, chosen by a hash of names; for sources "
        "that have only training images",
    )  # fmt: skip
    _add_order(command)
    _add_images(command)
    _add_work(command)
    command.add_argument(
        "--executor",
        choices=("processes", "dask"),
        help="where to work (default: processes; dask with --scheduler)",
    )
    command.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler, such as tcp://host:8786")
    command.add_argument(
        "--staging",
        metavar="DIR",
        help="local folder for files on their way to a URL (default: in the temporary folder)",
    )


def _add_images(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("images")
    group.add_argument(
        "--check", choices=("decode", "header"), default="decode",
        help="decode every image, or trust plain JPEGs whose header is sound (default: decode)",
    )  # fmt: skip
    group.add_argument(
        "--on-bad", choices=("repair", "skip", "fail"), default="repair",
        help="mend what can be mended and leave out the rest; leave out both; or end the build (default: repair)",
    )  # fmt: skip
    group.add_argument(
        "--max-bad", default="1%", metavar="N",
        help="images left out that are allowed, a count or a percentage; more end the build (default: 1%%)",
    )  # fmt: skip
    group.add_argument(
        "--exif", choices=("strip", "apply", "keep"), default="strip",
        help="a camera's note how to turn the image: remove it (the pixels stay, as torchvision sees them), turn the "
        "pixels, or leave it (default: strip)",
    )  # fmt: skip
    group.add_argument(
        "--keep", type=_names, default=(), metavar="KINDS",
        help=f"store these JPEGs as they are instead of mending them: any of {','.join(KEEPABLE)}",
    )  # fmt: skip
    group.add_argument("--max-side", type=int, metavar="PX", help="reduce larger images to this longer side")
    group.add_argument(
        "--short-side", type=int, metavar="PX", help="reduce larger images to this shorter side"
    )
    group.add_argument(
        "--quality", type=int, default=95, metavar="Q", help="of JPEGs encoded here, 1 to 100 (default: 95)"
    )


def _add_order(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shard-bytes", type=_size, default=Settings().shard_bytes, metavar="SIZE",
        help="size of a shard, such as 256MB or 1GiB (default: 256MB)",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of the order of the samples (default: 0)")
    command.add_argument(
        "--overwrite", action="store_true", help="replace a dataset or unfinished build in DST"
    )


def _add_work(command: argparse.ArgumentParser, flag: str = "--workers") -> None:
    command.add_argument(
        flag, dest="workers", type=int, metavar="N",
        help="processes (default: one more than cores); changes nothing in the result",
    )  # fmt: skip


def _synth(command: argparse.ArgumentParser) -> None:
    command.add_argument("destination", metavar="DST", help="folder or URL for the dataset")
    command.add_argument("--samples", type=int, required=True, metavar="N", help="images in split train")
    command.add_argument("--classes", type=int, required=True, metavar="C", help="classes")
    command.add_argument(
        "--val-samples", type=int, default=0, metavar="N", help="images in split val (default: no such split)"
    )
    command.add_argument(
        "--size", type=int, metavar="PX", help="side of all images (default: sizes distributed as ImageNet's)"
    )
    _add_order(command)
    _add_work(command)


def _verify(command: argparse.ArgumentParser) -> None:
    command.add_argument("dataset", metavar="DATASET", help="folder or URL")
    command.add_argument("--decode", action="store_true", help="also decode every image")
    _add_work(command, "--jobs")


def _info(command: argparse.ArgumentParser) -> None:
    command.add_argument("dataset", metavar="DATASET", help="folder or URL")
    command.add_argument(
        "--out",
        metavar="FOLDER",
        help="also write info.html (with images of every class) and histograms as PNG there",
    )


def _index(command: argparse.ArgumentParser) -> None:
    command.add_argument("urls", nargs="+", metavar="URL", help="tars, folders, globs or {000..146} patterns")
    command.add_argument("--out", required=True, metavar="FOLDER", help="where the dataset's indexes go")
    command.add_argument(
        "--classes",
        metavar="FILE",
        help="class list, one name a line (default: what shards of ours say, else the numbers)",
    )
    _add_work(command, "--jobs")


def _unpack(command: argparse.ArgumentParser) -> None:
    command.add_argument("dataset", metavar="DATASET", help="folder or URL")
    command.add_argument("destination", metavar="FOLDER", help="a new folder")
    command.add_argument("--splits", metavar="A,B", type=_names, help="only these splits (default: all)")


def _diff(command: argparse.ArgumentParser) -> None:
    command.add_argument("a", metavar="A", help="folder or URL of a dataset")
    command.add_argument("b", metavar="B", help="folder or URL of another")


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str, str]] = {
    "build": (
        _build,
        "pack images into a dataset",
        "Pack images into verified WebDataset shards. Every image is decoded once; what does not decode is left out "
        "and named in rejected.jsonl, what was changed in repaired.jsonl, what is there twice in duplicates.jsonl. A "
        "build that was killed goes on where it stopped when the same command is given again.",
    ),
    "verify": (
        _verify,
        "check a dataset against its checksums and index",
        "Check every file's SHA-256, and tars, index and labels against each other. Exit status 1 on problems.",
    ),
    "info": (_info, "show what a dataset holds", "Show a dataset in figures, and as a page with pictures."),
    "index": (
        _index,
        "use WebDataset shards that somebody else wrote",
        "Make index.parquet and DALI indexes for existing WebDataset shards, which stay where and as they are. The "
        "label is a sample's .cls, or label in its .json; the split is what the shard's path names, else train.",
    ),
    "unpack": (_unpack, "give a dataset back as class folders", "Write FOLDER/<split>/<class>/<image>."),
    "synth": (
        _synth,
        "make a dataset of synthetic images",
        "Make a dataset of deterministic images with ImageNet's distribution of sizes and bytes and with classes that "
        "can be learnt, for benchmarks without ImageNet.",
    ),
    "diff": (
        _diff,
        "compare two datasets",
        "Compare classes, samples (by their names in the source), labels and images. Exit status 1 if they differ.",
    ),
}


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]i?)?B?", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 256MB, 1GiB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _share(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no share; write it like 20% or 0.2, more than 0 and less than 1"
        )
    return value


def _names(text: str) -> tuple[Any, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name; write names with commas between them")
    return names
