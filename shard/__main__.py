"""Command line: python -m shard COMMAND."""

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 unread."""
    try:
        # Here, because worker processes import this module, too, and need none of it.
        from shard.commands import run
        from shard.ending import unless_unread
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130

    return unless_unread(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
