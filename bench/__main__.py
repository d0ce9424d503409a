"""Command line: python -m bench throughput | overhead | peers | parity | packing | remote | shuffle."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from bench import shuffle
from bench.operations import operations, within
from bench.operations import table as operations_table
from bench.overhead import overhead, require_positive
from bench.overhead import table as overhead_table
from bench.packing import packing
from bench.packing import table as packing_table
from bench.parity import parity
from bench.parity import table as parity_table
from bench.peers import PEERS
from bench.peers.compare import Contest, compare
from bench.peers.report import picture as peers_picture
from bench.peers.report import table as peers_table
from bench.remote import add_command as _remote_command
from bench.report import picture, require_matplotlib, table
from bench.throughput import OWN, Plan, throughput
from bench.throughput import PEERS as QUICK_PEERS
from loader.resolve import usable_cores
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.config import Config
from train.recipes import RECIPES, recipe


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except FeedlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add_command in (
        _throughput_command,
        _overhead_command,
        _peers_command,
        _parity_command,
        _packing_command,
        _remote_command,
        shuffle.add_command,
    ):
        add_command(commands)
    return parser


def _throughput_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "throughput",
        help="images/s of every stage, and which one limits",
        description="Measure reading, decoding, the loader and training, interleaved on the same machine, and say "
        "which stage holds the others back. Data, crop, batch size and model come from a training recipe.",
    )
    add = command.add_argument
    add("--data", type=Path, required=True, metavar="DATASET", help="folder made by `python -m shard build`")
    add("--recipe", choices=sorted(RECIPES), help="training recipe to measure (default: the settings below)")
    add("--split", help="split to read (default: the recipe's training split)")
    add("--model", help="any timm model (default: the recipe's, or resnet18)")
    add("--size", type=_positive, help="side of the crops, pixels (default: the recipe's, or 224)")
    add("--batch-size", type=_positive, help="images per step (default: the recipe's, or 64)")
    add("--backend", choices=("auto", "dali", "torch"), help="measure this backend only (default: both)")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: a CUDA GPU where there is one",
    )
    add("--threads", type=_positive, help="decoding threads of every contestant (default: one per core)")
    add("--stages", default=",".join(OWN), help=f"comma-separated, out of {', '.join(OWN)} (default: all)")
    add("--peers", action="store_true", help=f"also measure {' and '.join(QUICK_PEERS)}")
    add("--repeats", type=_positive, default=5, help="interleaved repeats (default: 5)")
    add("--seconds", type=float, default=3.0, help="per stage and repeat (default: 3)")
    add(
        "--out",
        type=Path,
        default=Path("bench-throughput"),
        help="folder for throughput.json and throughput.png",
    )
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_throughput)


def _peers_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "peers",
        help="the same work by other loaders, and by ours",
        description="Random resized crop and flip by other loaders on the same images with as many threads, each in a "
        "process of its own; that they do the same work is checked first. Some need the images in another format: "
        "copies are made in the temporary folder. Peers that are not installed are listed as left out.",
    )
    add = command.add_argument
    add("--data", type=Path, required=True, metavar="DATASET", help="folder made by `python -m shard build`")
    add("--split", default="train", help="split to read (default: train)")
    add("--size", type=_positive, default=224, help="side of the crops, pixels (default: 224)")
    add("--batch-size", type=_positive, default=64, help="images per batch (default: 64)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where batches are wanted")
    add("--threads", type=_positive, help="threads or worker processes of everyone (default: one per core)")
    add("--only", metavar="NAMES", help=f"comma-separated, out of {', '.join(PEERS)} (default: all)")
    add(
        "--augment",
        metavar="POLICY",
        help="also augment: rand-m9-n2 and the like, ta_wide, autoaugment or 3a",
    )
    add("--repeats", type=_positive, default=5, help="interleaved repeats (default: 5)")
    add("--seconds", type=float, default=3.0, help="per peer and repeat (default: 3)")
    add("--out", type=Path, default=Path("bench-peers"), help="folder for peers.json and peers.png")
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_peers)


def _peers(options: argparse.Namespace) -> int:
    require_matplotlib()
    _check_seconds(options.seconds)
    only = tuple(name.strip() for name in (options.only or ",".join(PEERS)).split(",") if name.strip())
    device = _device(options.device)
    contest = Contest(
        data=options.data,
        split=options.split,
        size=options.size,
        batch_size=options.batch_size,
        threads=options.threads or usable_cores(),
        repeats=options.repeats,
        seconds=options.seconds,
        only=only,
        augment=options.augment,
    )
    record = compare(contest, device, lambda text: print(text, file=sys.stderr))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peers.json").write_text(json.dumps(record, indent=1) + "\n")
    peers_picture(record, options.out / "peers.png")
    print(json.dumps(record) if options.json else peers_table(record))
    print(f"record and picture: {options.out}", file=sys.stderr)
    return 0


def _overhead_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "overhead",
        help="our training step against a plain PyTorch loop",
        description="Measure the training step and a plain loop on the same synthetic batch, interleaved; with --data "
        "also training on real data (the feed ratio). Model, batch and precision come from a training recipe.",
    )
    add = command.add_argument
    add("--recipe", choices=sorted(RECIPES), help="training recipe to measure (default: the settings below)")
    add("--data", type=Path, metavar="DATASET", help="also measure training on this dataset")
    add("--split", help="split to read (default: the recipe's training split)")
    add("--model", help="any timm model (default: the recipe's, or resnet18)")
    add("--size", type=_positive, help="side of the images, pixels (default: the recipe's, or 224)")
    add("--batch-size", type=_positive, help="images per step (default: the recipe's, or 64)")
    add("--precision", choices=("bf16", "fp16", "fp32"), help="(default: the recipe's, or bf16)")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: a CUDA GPU where there is one",
    )
    add("--repeats", type=_positive, default=7, help="interleaved repeats (default: 7)")
    add("--seconds", type=float, default=3.0, help="per contestant and repeat (default: 3)")
    add("--out", type=Path, default=Path("bench-overhead.json"), help="where the record goes")
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_overhead, backend=None)


def _overhead(options: argparse.Namespace) -> int:
    require_positive(options.seconds)
    config = _config(options)
    if options.precision:
        config = dataclasses.replace(
            config, step=dataclasses.replace(config.step, precision=options.precision)
        )
    record = overhead(
        config,
        _device(options.device),
        options.repeats,
        options.seconds,
        lambda text: print(text, file=sys.stderr),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record) if options.json else overhead_table(record))
    print(f"record: {options.out}", file=sys.stderr)
    return 0


def _parity_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "parity",
        help="difference of our pixels from Pillow's and torchvision's",
        description="Compare every image of a split, as the loader gives it, with Pillow and torchvision: train and "
        "evaluation transform, both backends; differences in grey levels.",
    )
    add = command.add_argument
    add("--data", type=Path, required=True, metavar="DATASET", help="folder made by `python -m shard build`")
    add("--split", default="train", help="split to compare (default: train)")
    add("--size", type=_positive, default=224, help="side of the crops, pixels (default: 224)")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: a CUDA GPU where there is one",
    )
    add(
        "--operations",
        type=_positive,
        metavar="N",
        help="compare every augmentation operation on the first N images instead, with timm and torchvision",
    )
    add("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=_parity)


def _packing_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "packing",
        help="images/s of `shard build`, against tar, webdataset and the decode ceiling",
        description="Pack class folders of JPEGs with every contestant in turn, and compare.",
    )
    add = command.add_argument
    add(
        "--source",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="class folders; several GB give steady figures",
    )
    add(
        "--scratch",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where to write, on the disk of interest",
    )
    add("--repeats", type=_positive, default=5, help="interleaved repeats (default: 5)")
    add("--out", type=Path, help="also write the record to this file")
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_packing)


def _packing(options: argparse.Namespace) -> int:
    record = packing(
        options.source, options.scratch, options.repeats, lambda text: print(text, file=sys.stderr)
    )
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record) if options.json else packing_table(record))
    return 0


def _parity(options: argparse.Namespace) -> int:
    dataset, device = Dataset.open(options.data), _device(options.device)
    backends = ["torch", "dali"]
    if options.operations is None:
        rows = parity(dataset, options.split, options.size, device, backends)
        print(json.dumps(rows) if options.json else parity_table(rows))
        return 0
    rows = operations(dataset.split(options.split), options.operations, options.size, device, backends)
    print(json.dumps(rows) if options.json else operations_table(rows))
    return int(any(not within(row) for row in rows))


def _throughput(options: argparse.Namespace) -> int:
    require_matplotlib()
    device = _device(options.device)
    record = throughput(_plan(options), device, lambda text: print(text, file=sys.stderr))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "throughput.json").write_text(json.dumps(record, indent=1) + "\n")
    picture(record, options.out / "throughput.png")
    print(json.dumps(record) if options.json else table(record))
    print(f"record and picture: {options.out}", file=sys.stderr)
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    stages = tuple(name.strip() for name in options.stages.split(",") if name.strip())
    if unknown := [name for name in stages if name not in OWN]:
        raise FeedlineError(f"--stages has {unknown[0]!r}; choose out of {', '.join(OWN)}")
    _check_seconds(options.seconds)
    return Plan(
        config=_config(options),
        stages=stages + (QUICK_PEERS if options.peers else ()),
        repeats=options.repeats,
        seconds=options.seconds,
        threads=options.threads or usable_cores(),
    )


def _config(options: argparse.Namespace) -> Config:
    """Take the recipe's configuration with the flags' values."""
    config = recipe(options.recipe) if options.recipe else Config()
    chosen = {
        "train_split": options.split,
        "size": options.size,
        "batch_size": options.batch_size or (None if options.recipe else 64),
        "loader_backend": options.backend,
    }
    images = dataclasses.replace(config.input, **{k: v for k, v in chosen.items() if v is not None})
    arch = options.model or (config.model.arch if options.recipe else "resnet18")
    model = dataclasses.replace(config.model, arch=arch)
    data = str(options.data) if options.data is not None else None
    return dataclasses.replace(config, data=data, input=images, model=model)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise FeedlineError("--device is cuda, but this machine has no usable CUDA GPU; use cpu or auto")
    gpu = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")


def _check_seconds(seconds: float) -> None:
    if seconds <= 0:
        raise FeedlineError(f"--seconds is {seconds}; it must be positive")


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


if __name__ == "__main__":
    sys.exit(main())
