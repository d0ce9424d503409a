"""metrics.jsonl: what a run tells about itself, one JSON object a line, and to the trackers chosen."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from shard.errors import FeedlineError
from train.history import History
from train.outbox import Outcome, Tracker
from train.trackers import numbers

# Fields that depend on the clock and the machine; all others come out alike in a repeated run.
MEASURED = (
    "images_per_s", "data_wait_share", "time_s", "mfu", "gpu", "images_per_joule", "peak_memory_gib",
)  # fmt: skip


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a JSONL file; one that is still being written is left out. None of a file that is not there.

    Raises:
        FeedlineError: one is damaged.
    """
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
    return [_line(text, path, number) for number, text in enumerate(whole.splitlines(), start=1)]


def _line(text: str, path: Path, number: int) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise FeedlineError(f"line {number} of {path} cannot be read: {error}; remove it") from error
    if not isinstance(found, dict):
        raise FeedlineError(f"line {number} of {path} is {text[:40]!r}, no object; remove it")
    return found


class Metrics:
    """Writes metrics.jsonl, one object a line, visible at once. Writes nothing but on rank 0.

    Args:
        path: the file.
        keep_bytes: length of what stays of it: a resumed run repeats the rest.
        active: whether to write.
        trackers: who is told as well.
        history: of the run, told how it ends.

    Attributes:
        history: the same; None on other ranks.
    """

    def __init__(
        self,
        path: Path,
        keep_bytes: int,
        *,
        active: bool,
        trackers: Sequence[Tracker] = (),
        history: History | None = None,
    ) -> None:
        self.history = history
        self._trackers = [*trackers, *([history] if history else [])]
        self._file: TextIO | None = None
        if active:
            with path.open("ab") as file:
                file.truncate(min(keep_bytes, path.stat().st_size))
            self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append a line; `kind` and `step` are among the values."""
        if self._file is not None:
            try:
                self._file.write(json.dumps(values) + "\n")
                self._file.flush()
            except OSError as error:
                raise FeedlineError(f"cannot write {self._file.name}: {error.strerror}") from error
            for tracker in self._trackers:
                rest = {k: v for k, v in values.items() if k != "step"}
                tracker.log(numbers(rest, f"{values['kind']}/"), values["step"])

    def size(self) -> int:
        """Length of the file in bytes."""
        return 0 if self._file is None else os.fstat(self._file.fileno()).st_size

    def sync(self) -> None:
        """Force the file to disk; from any thread.

        Raises:
            FeedlineError: the disk does not take it.
        """
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise FeedlineError(f"cannot write {self._file.name}: {error.strerror}") from error

    def close(self, outcome: Outcome = "finished") -> None:
        """Close the file and the trackers, which are told how the run ended."""
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers:
            tracker.close(outcome)

    def __enter__(self) -> Metrics:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; an orderly exception, `train.stop.Stopped`, means stopped, any other failed."""
        self.close(
            "finished" if error is None else "stopped" if getattr(error, "orderly", False) else "failed"
        )
