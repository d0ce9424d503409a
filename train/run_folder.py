"""The run folder: where its files are, and whether a run goes on, starts, or is already finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train import checkpoint
from train.config import Config, differences, from_dict


class RunFolder:
    """Paths of a run's files.

    Attributes:
        config: the resolved configuration.
        metrics: one JSON object a line.
        summary: the result, once finished.
        nonfinite: step, learning rate and sample ids, where a run broke.
        last: newest checkpoint.
        best: checkpoint with the best top-1.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.metrics = root / "metrics.jsonl"
        self.summary = root / "summary.json"
        self.nonfinite = root / "nonfinite.json"
        self.last = root / "checkpoints" / "last.pt"
        self.best = root / "checkpoints" / "best.pt"

    def prepare(self, *, fresh: bool) -> None:
        """Make the folder; for a fresh run remove what an earlier one left.

        Raises:
            FeedlineError: the folder cannot be made.
        """
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FeedlineError(f"cannot make the run folder {self.root}: {error}") from error
        self.nonfinite.unlink(missing_ok=True)
        if fresh:
            for path in (self.last, self.best, self.metrics, self.summary):
                path.unlink(missing_ok=True)

    def find(self, resume: str) -> Path | None:
        """Return the checkpoint to go on from: "auto": the newest of this folder if any, "never", or a path.

        Raises:
            FeedlineError: a checkpoint of another run is named, but this folder already holds a run.
        """
        if resume == "never":
            return None
        if resume == "auto":
            return self.last if self.last.exists() else None
        path = Path(resume)
        if self.last.exists() and not self.owns(path):
            raise FeedlineError(
                f"{self.root} already holds a run; choose another --run-dir to go on from {path}"
            )
        return path

    def owns(self, path: Path) -> bool:
        """Whether the checkpoint `path` is this folder's."""
        return path.resolve().parent == self.last.parent.resolve()


def load_checked(path: Path, config: Config, dataset: Dataset) -> dict[str, Any]:
    """Load a checkpoint that this run can go on from.

    Raises:
        FeedlineError: unreadable, or of another dataset or configuration; lists the keys that differ.
    """
    content = checkpoint.load(path)
    afresh = "choose another --run-dir, or start afresh with --resume never (overwrites the run)"
    if content["fingerprint"] != dataset.fingerprint:
        raise FeedlineError(f"{path} was trained on another dataset than {dataset.root}; {afresh}")
    saved = from_dict(Config, content["config"], str(path))
    if changed := differences(saved, config):
        raise FeedlineError(f"{path} is of another configuration ({'; '.join(changed)}); {afresh}")
    return content
