"""Command line of `python -m bench parity`."""

from __future__ import annotations

import argparse
import json

from bench.operations import operations, within
from bench.operations import table as operations_table
from bench.options import add_data, add_device, find_device, positive
from bench.parity import parity, table
from shard.dataset import Dataset


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `parity` to the command line."""
    command = commands.add_parser(
        "parity",
        help="difference of our pixels from Pillow's and torchvision's",
        description="Compare every image of a split, as the loader gives it, with Pillow and torchvision: train and "
        "evaluation transform, both backends; differences in grey levels.",
    )
    add = command.add_argument
    add_data(add)
    add("--split", default="train", help="split to compare (default: train)")
    add("--size", type=positive, default=224, help="side of the crops, pixels (default: 224)")
    add_device(add)
    add(
        "--operations",
        type=positive,
        metavar="N",
        help="compare every augmentation operation on the first N images instead, with timm and torchvision",
    )
    add("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    dataset, device = Dataset.open(options.data), find_device(options.device)
    backends = ["torch", "dali"]
    if options.operations is None:
        rows = parity(dataset, options.split, options.size, device, backends)
        print(json.dumps(rows) if options.json else table(rows))
        return 0
    rows = operations(dataset.split(options.split), options.operations, options.size, device, backends)
    print(json.dumps(rows) if options.json else operations_table(rows))
    return int(any(not within(row) for row in rows))
