"""Command line: python -m bench COMMAND; `--help` lists the commands."""

from __future__ import annotations

import argparse
import signal
import sys

from shard.errors import FeedlineError
from shard.unread import unless_unread


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    return unless_unread(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        return int(options.run(options))
    except FeedlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    # Only here: they bring torch, which takes seconds, and Ctrl-C meanwhile is no traceback either.
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

    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (
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
    ):
        command.add_command(commands)
    return parser


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)  # as after Ctrl-C, children end and temporary folders go
    sys.exit(main())
