"""A trial's training: `python -m train.sweep.child PARENT FLAGS…` is `python -m train FLAGS…` that ends with PARENT."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from train.__main__ import main

_EVERY_S = 0.5


def end_with(parent: int) -> threading.Thread:
    """Send this process SIGTERM, upon which a training saves and leaves, when its parent is no longer `parent`.

    Returns:
        the thread that watches.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_EVERY_S)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch, name="watch-parent", daemon=True)
    thread.start()
    return thread


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
