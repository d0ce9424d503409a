"""Command line of `python -m bench packing`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.options import positive, publish, require_writable, say
from bench.packing import packing, table


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `packing` to the command line."""
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
    add("--repeats", type=positive, default=5, help="interleaved repeats (default: 5)")
    add("--out", type=Path, help="also write the record to this file")
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    require_writable(options.out)
    record = packing(options.source, options.scratch, options.repeats, say)
    publish(record, table(record), as_json=options.json, file=options.out)
    return 0
