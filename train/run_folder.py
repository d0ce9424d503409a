"""The run folder: where its files are, and whether a run goes on, starts, or is already finished."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train import checkpoint
from train.checkpoint import DamagedError
from train.config import Config, differences, from_dict

_EARLIER = f"step-{'[0-9]' * 9}.pt"  # not step-final.pt, which somebody else put there
_LOCK_WAIT_S = 60.0  # a run that was told to stop may be writing its last checkpoint


class RunFolder:
    """Paths of a run's files.

    Attributes:
        config: the resolved configuration.
        metrics: one JSON object a line.
        summary: the result, once finished.
        history: starts, ends and bad samples, one JSON object a line.
        nonfinite: step, learning rate, sample ids and position, where a run broke.
        checkpoints: folder of the checkpoints.
        last: newest checkpoint.
        best: checkpoint with the best top-1, or mAP on a multi-label dataset; of equal ones that of the lowest loss.
        evaluations: folder of what `python -m train eval` found.
        started: names the start of torchrun that began here last; there from the first start on.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.metrics = root / "metrics.jsonl"
        self.summary = root / "summary.json"
        self.history = root / "history.jsonl"
        self.nonfinite = root / "nonfinite.json"
        self.checkpoints = root / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.best = self.checkpoints / "best.pt"
        self.evaluations = root / "eval"
        self._lock = root / ".lock"
        self.started = root / ".started"

    def at_step(self, step: int) -> Path:
        """Path of an earlier checkpoint."""
        return self.checkpoints / f"step-{step:09d}.pt"

    @staticmethod
    def _step_of(path: Path) -> int:
        return int(path.stem.removeprefix("step-"))

    def earlier(self) -> list[Path]:
        """Earlier checkpoints than `last`, newest first."""
        return sorted(self.checkpoints.glob(_EARLIER), reverse=True)

    def own_checkpoints(self) -> list[Path]:
        """Files with our checkpoints' names, and what was made of them (.tmp, .damaged, .abandoned)."""
        names = (self.last.name, self.best.name, _EARLIER)
        return [path for name in names for end in ("", ".*") for path in self.checkpoints.glob(name + end)]

    def written(self) -> tuple[Path, ...]:
        """What a run and its evaluations write, overwrite or remove, there or not."""
        files = (self.config, self.metrics, self.summary, self.history, self.nonfinite)
        also = (self.root / "trackers.json", self.root / "profile")
        return (*files, self.checkpoints, self.evaluations, *also)

    @contextmanager
    def locked(self, wait_s: float = _LOCK_WAIT_S) -> Iterator[None]:
        """Keep other processes from training in this folder; makes the folder.

        Raises:
            FeedlineError: another process has it for longer than `wait_s`, or the folder cannot be made.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            file = self._lock.open("a+")
        except OSError as error:
            raise FeedlineError(f"cannot make the run folder {self.root}: {error.strerror}") from error
        with file:
            _acquire(file.fileno(), self.root, wait_s)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def prepare(self, *, fresh: bool) -> None:
        """Make the folder; for a fresh run remove what an earlier one left, by the names that it gave.

        Whose the files are is for `train.claim.require_free` to see to, before.

        Raises:
            FeedlineError: the folder cannot be made.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FeedlineError(f"cannot make the run folder {self.root}: {error.strerror}") from error
        self.started.touch()  # killed from here on, what is left is still a run's
        self.nonfinite.unlink(missing_ok=True)
        if fresh:
            for path in (*self.own_checkpoints(), self.metrics, self.summary, self.history):
                path.unlink(missing_ok=True)
            # Evaluations of a network that is no more: an epoch's number would not tell them from the new one's.
            if self.evaluations.exists():
                shutil.rmtree(self.evaluations)
        self.started.write_text(_launch(), encoding="utf-8")

    def go_back_to(self, path: Path, content: dict[str, Any]) -> None:
        """Make this folder's checkpoint `path` the newest: later ones are set aside, as `NAME.abandoned`.

        Without this, what is saved from here on would mix with what it has taken the place of.

        Args:
            path: one of this folder's.
            content: what is in it; forgets the best evaluation where that came later.
        """
        if path == self.last:
            return
        step = int(content["step"])
        aside = path.with_name("last.pt.tmp")
        shutil.copyfile(path, aside)
        later = [other for other in self.earlier() if self._step_of(other) > step]
        if _is_whole(self.best) and int(checkpoint.load(self.best)["step"]) > step:
            later.append(self.best)
            content |= {"best_top1": -1.0, "best_map": -1.0, "best_epoch": 0}
            if self.evaluations.exists():  # of that one
                abandoned = self.root / "eval.abandoned"
                shutil.rmtree(abandoned, ignore_errors=True)
                self.evaluations.replace(abandoned)
        for other in (*later, self.last):
            if other.exists():
                other.replace(other.with_name(f"{other.name}.abandoned"))
        aside.replace(self.last)

    def find(self, resume: str) -> Path | None:
        """Return the checkpoint to go on from: "auto": the newest whole one of this folder if any, "never", or a path.

        After torchrun has restarted the ranks, "never" and a path mean what they meant at its first start only.

        Raises:
            FeedlineError: a checkpoint of another run is named, but this folder already holds a run; none of
                this folder's checkpoints is whole; only the best one of a finished run is left; or torchrun starts
                again what failed by itself.
        """
        if self._restarted():
            resume = "auto"
            if self.nonfinite.exists():
                raise FeedlineError(
                    f"torchrun starts a run again that was no longer finite ({self.nonfinite}): it would be so again; "
                    "mend it as the first error says, then give the same command"
                )
        if resume == "never":
            return None
        mine = self._has_checkpoint()
        if resume == "auto":
            if mine:
                self._require_newest()
            return self._newest_whole() if mine else None
        path = Path(resume)
        if mine and not self.owns(path):
            raise FeedlineError(
                f"{self.root} already holds a run; choose another --run-dir to go on from {path}"
            )
        return path

    def owns(self, path: Path) -> bool:
        """Whether the checkpoint `path` is this folder's; it may be a link to where there is more room."""
        return self.checkpoints.resolve() in (path.resolve().parent, path.parent.resolve())

    def _has_checkpoint(self) -> bool:
        return self.last.exists() or self.best.exists() or bool(self.earlier())

    def _require_newest(self) -> None:
        """Refuse to go on from the best checkpoint of a finished run whose others were removed.

        It would be trained again from there on. Without a result the best one alone is what a run leaves that was
        killed, or met a full disk, while it saved for the first time: that one goes on.
        """
        if self.summary.exists() and not self.last.exists() and not self.earlier():
            raise FeedlineError(
                f"{self.root} holds a finished run of which only {self.best} is left; choose another --run-dir, or "
                "start afresh with --resume never (overwrites the run)"
            )

    def _restarted(self) -> bool:
        """Whether torchrun has started this run afresh in this folder, and is now restarting it."""
        return (
            "TORCHELASTIC_RUN_ID" in os.environ
            and self.started.exists()
            and self.started.read_text(encoding="utf-8") == _launch()
        )

    def _newest_whole(self) -> Path:
        """The newest checkpoint that is not damaged; damage is told of, and a damaged `last` set aside."""
        try:
            checkpoint.verify(self.last)
            return self.last
        except DamagedError as error:
            problem = str(error)
        except FileNotFoundError:  # killed between the two renames of a save
            problem = f"{self.last} is missing"
        whole = [path for path in (*self.earlier(), self.best) if _is_whole(path)]
        if not whole:
            raise FeedlineError(
                f"{problem}, and {self.root} has no other whole checkpoint; start afresh with --resume never, "
                "which removes what is there"
            )
        newest = max(whole, key=lambda path: int(checkpoint.load(path)["step"]))
        print(f"warning: {problem}; going on from the newest whole one, {newest}", file=sys.stderr)
        if self.last.exists():
            self.last.replace(self.last.with_name("last.pt.damaged"))
        return newest


def require_same(path: Path, content: dict[str, Any], config: Config, dataset: Dataset) -> None:
    """Make sure that this run can go on from a checkpoint.

    Raises:
        FeedlineError: it is of another dataset or configuration; lists the keys that differ.
    """
    afresh = "choose another --run-dir, or start afresh with --resume never (overwrites the run)"
    if content["fingerprint"] != dataset.fingerprint:
        raise FeedlineError(f"{path} was trained on another dataset than {dataset.root}; {afresh}")
    saved = from_dict(Config, content["config"], str(path))
    if changed := differences(saved, config):
        raise FeedlineError(f"{path} is of another configuration ({'; '.join(changed)}); {afresh}")


def read_if_there(path: Path) -> dict[str, Any] | None:
    """Content of a checkpoint; None: there is none.

    Raises:
        DamagedError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        return checkpoint.load(path)
    except DamagedError as error:
        raise DamagedError(
            f"{error}; put a whole copy in its place, or remove it: it is then left out"
        ) from error


def _is_whole(path: Path) -> bool:
    try:
        checkpoint.verify(path)
    except FileNotFoundError:
        return False
    except DamagedError as error:
        print(f"warning: {error}", file=sys.stderr)
        return False
    return True


def _launch() -> str:
    """Name of this start of torchrun, the same after each of its restarts: its run id, or else the agent process."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if run_id != "none":
        return run_id
    agent = os.getppid()
    try:
        began = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:  # not Linux
        began = ""
    return f"{socket.gethostname()} {agent} {began}"


def _acquire(descriptor: int, root: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:  # noqa: PERF203  polled: a signal handler may want to run
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 200, 0).decode() or "another process"
                raise FeedlineError(
                    f"{holder} is training in {root}; wait for it, or choose another --run-dir"
                ) from None
            time.sleep(0.2)
