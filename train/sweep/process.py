"""Trials' trainings as processes: a crash, a full memory or a loss that is not finite ends one trial alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from loader.resolve import usable_cores
from shard.errors import FeedlineError

OUTPUT = "output.log"
# "error: …" is the program's own; what Python says of an exception that nobody caught stands at the line's beginning.
_ERROR = re.compile(r"^(?:\[rank \d+\] )?(?:error: |[\w.]+(?:Error|Exception|Interrupt)\b)")
_READ_BYTES = 20_000  # of the output's end


class Running(Protocol):
    """A training at work."""

    def poll(self) -> int | None:
        """Exit status, negative after a signal; None while it runs."""
        ...

    def stop(self) -> None:
        """Ask it to save and leave."""
        ...

    def reason(self) -> str:
        """Why it failed, in one line."""
        ...


class Start(Protocol):
    """Starts trainings."""

    def __call__(self, flags: Sequence[str], folder: Path, slot: int) -> Running:
        """Start one.

        Args:
            flags: of the training.
            folder: its run folder, which exists.
            slot: 0 … workers - 1; no two at a time have the same.
        """
        ...


class Training:
    """A training in a process of its own; see `Start`. Its output goes to FOLDER/output.log.

    Args:
        workers: how many run at a time: cores and GPUs are shared out among them.

    Raises:
        FeedlineError: it cannot be started.
    """

    def __init__(self, flags: Sequence[str], folder: Path, slot: int, *, workers: int) -> None:
        self._output = folder / OUTPUT
        self._folder = folder
        command = [sys.executable, "-m", "train.sweep.child", str(os.getpid())]
        command += [*flags, "--run-dir", str(folder), *share_of_cores(flags, workers)]
        try:
            with self._output.open("ab") as output:
                # A session of its own: Ctrl-C comes to the sweep alone, which then asks each training once.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | surroundings(slot, workers),
                    start_new_session=True,
                )
        except OSError as error:
            raise FeedlineError(f"cannot start a trial in {folder}: {error}") from error

    def poll(self) -> int | None:
        """See `Running.poll`."""
        return self._process.poll()

    def stop(self) -> None:
        """See `Running.stop`."""
        self._process.terminate()

    def reason(self) -> str:
        """See `Running.reason`: the last line that names an error, or else the last one."""
        return last_error(self._output)


def last_error(path: Path) -> str:
    """The last line of a training's output that names an error, or else the last one; "" of no output."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _READ_BYTES))
        text = file.read().decode("utf-8", "replace")
    lines = [line for line in (line.strip() for line in re.split(r"[\r\n]+", text)) if line]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or [""])[-1].removeprefix("error: ")


def share_of_cores(flags: Sequence[str], workers: int) -> list[str]:
    """Flags that keep several trainings at a time from decoding in more threads than there are cores."""
    if workers == 1 or any(word.partition("=")[0].replace("_", "-") == "--loader-threads" for word in flags):
        return []
    return ["--loader-threads", str(max(1, usable_cores() // workers))]


def surroundings(slot: int, workers: int) -> dict[str, str]:
    """Environment of a training: its share of the cores, and one of several GPUs, in turn."""
    found: dict[str, str] = {}
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, usable_cores() // workers))
    gpus = torch.cuda.device_count()
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(gpus)]
        found["CUDA_VISIBLE_DEVICES"] = names[slot % gpus]
    return found
