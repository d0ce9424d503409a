"""Child processes that do not outlive the command that started them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_END_S = 20.0


@contextmanager
def running(command: Sequence[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a program; whatever is raised in the block, Ctrl-C among it, ends the program.

    `subprocess.Popen` itself leaves it running then: in a terminal Ctrl-C reaches the child as well, elsewhere it
    does not.
    """
    with subprocess.Popen(command, text=True, **more) as process:
        try:
            yield process
        except BaseException:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
