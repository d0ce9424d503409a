"""How commands end: in a line for what went wrong, and in none where nobody reads their output to the end."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

from shard.errors import FeedlineError

_STATUS = 141  # as a shell has it for a program that SIGPIPE ended


def unless_unread(command: Callable[[], int]) -> int:
    """Exit status of a command; 141, and not a word, where its standard output is closed before it has written all.

    Raises:
        BrokenPipeError: of another pipe than standard output.
    """
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _closed():
            raise
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # for what the interpreter still flushes
        return _STATUS


def in_one_line(command: Callable[[], int]) -> int:
    """Exit status of a command: as of `unless_unread`; 1 and its line for a `FeedlineError`, 130 for Ctrl-C."""

    def caught() -> int:
        try:
            return command()
        except FeedlineError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return unless_unread(caught)


def _closed() -> bool:
    """Whether nobody is at the other end of standard output."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
