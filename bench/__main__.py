"""Command line: python -m bench COMMAND; the program is `bench.program`."""

import signal
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 unread."""
    try:
        # Here, because it imports torch, which takes seconds: Ctrl-C is no traceback then either.
        from bench.program import main as program
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return program(arguments)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)  # as after Ctrl-C, children end and temporary folders go
    sys.exit(main())
