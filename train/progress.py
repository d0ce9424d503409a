"""Progress on the terminal."""

from __future__ import annotations

import sys


class Progress:
    """Progress on stderr: one line that is overwritten on a terminal, plain lines elsewhere."""

    def __init__(self, *, active: bool) -> None:
        self._active = active
        self._terminal = sys.stderr.isatty()
        self._open = False

    def update(self, text: str) -> None:
        """Show where the run stands."""
        if self._active:
            print(
                f"\r{text}\x1b[K" if self._terminal else text,
                end="" if self._terminal else "\n",
                file=sys.stderr,
            )
            sys.stderr.flush()
            self._open = self._terminal

    def line(self, text: str) -> None:
        """Write a line that stays."""
        if self._active:
            print(("\n" if self._open else "") + text, file=sys.stderr, flush=True)
            self._open = False


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


def rate_text(images_per_s: float | None, wait_share: float | None, left_s: float | None) -> str:
    """Throughput, share of time waited for data, and time left, for the progress line."""
    if images_per_s is None or wait_share is None or left_s is None:
        return "warming up"
    return f"{images_per_s:.0f} images/s  data wait {wait_share:.1%}  left {clock(left_s)}"
