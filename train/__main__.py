"""`python -m train` and `torchrun -m train`; the program is `train.program`."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        # Here, because it imports torch, which takes seconds: Ctrl-C is no traceback then either.
        from train.program import main as program
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return program(argv)


if __name__ == "__main__":
    sys.exit(main())
