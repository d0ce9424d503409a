"""Command line of `python -m bench report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.options import say
from bench.page import page, read_records
from train.whole import whole


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `report` to the command line."""
    command = commands.add_parser(
        "report",
        help="all records as one HTML page",
        description="Write one HTML page with tables and charts of all records, of whatever benchmark.",
    )
    add = command.add_argument
    add(
        "--records", type=Path, default=Path("bench/records"), metavar="FOLDER",
        help="with the records, *.json, in folders below it, too (default: bench/records)",
    )  # fmt: skip
    add("--out", type=Path, required=True, metavar="FILE", help="the page, such as report.html")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    html = page(read_records(options.records))
    with whole(options.out) as part:
        part.write_text(html, encoding="utf-8")
    say(f"page: {options.out}")
    return 0
