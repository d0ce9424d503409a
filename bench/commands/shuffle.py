"""Command line of `python -m bench shuffle`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.options import publish, require_writable, say
from bench.shuffle import Plan, shuffle, table


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `shuffle` to the command line."""
    command = commands.add_parser(
        "shuffle",
        help="how well orders mix: ours, DALI's and webdataset's buffers",
        description="Make a small dataset that is sorted by class, read an epoch of it with every reader, and measure "
        "how far the order is from a random one.",
    )
    default = Plan()
    for name, what in (
        ("samples", "of the dataset"),
        ("shards", "that it is cut into"),
        ("classes", "that it is sorted by"),
        ("buffer", "samples in the buffers of DALI and webdataset"),
        ("batch-size", "of the batches that are looked at"),
        ("seed", "of all readers"),
    ):
        value = getattr(default, name.replace("-", "_"))
        command.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"{what} (default: {value})"
        )
    command.add_argument("--out", type=Path, help="also write the record to this file")
    command.add_argument("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    require_writable(options.out)
    plan = Plan(**{name: getattr(options, name) for name in Plan.__slots__})
    with tempfile.TemporaryDirectory(prefix="feedline-shuffle-") as folder:
        record = shuffle(plan, Path(folder), say)
    publish(record, table(record), as_json=options.json, file=options.out)
    return 0
