"""Command line: python -m bench COMMAND; `--help` lists the commands."""

from __future__ import annotations

import argparse

from bench.commands import (
    accelerator,
    doctor,
    guard,
    overhead,
    packing,
    parity,
    peers,
    remote,
    report,
    scaling,
    shuffle,
    throughput,
)
from shard.ending import in_one_line

_COMMANDS = (
    throughput,
    doctor,
    guard,
    accelerator,
    scaling,
    overhead,
    peers,
    parity,
    packing,
    remote,
    shuffle,
    report,
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 unread."""
    return in_one_line(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    options = _parser().parse_args(arguments)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_command(commands)
    return parser
