"""Experiment trackers by name. What goes there is in metrics.jsonl as well, which is always written."""

from __future__ import annotations

import importlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shard.errors import FeedlineError
from train.outbox import BackgroundTracker, Outcome, Tracker, first_line


class TensorBoard:
    """TensorBoard, in RUN/tensorboard.

    Args:
        root: the run folder.
        config: settings by name.
        step: the run goes on after this one; what was written of later ones is hidden.
    """

    def __init__(self, root: Path, config: Mapping[str, Any], step: int) -> None:
        writer = _require("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer = writer(str(root / "tensorboard"), purge_step=step + 1 if step else None)
        if not step:
            self._writer.add_text("config", "\n".join(f"    {k}: {v}" for k, v in config.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, outcome: Outcome = "finished") -> None:
        """See `Tracker.close`."""
        self._writer.close()


class WandB:
    """Weights & Biases, its files in RUN/wandb; project and mode as its own environment variables say.

    Args: see `TensorBoard`.
    """

    def __init__(self, root: Path, config: Mapping[str, Any], step: int) -> None:
        wandb = _require("wandb", "wandb")
        kept = _Kept(root, "wandb", step)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "feedline"),
            name=root.name,
            id=kept.value or uuid.uuid4().hex,
            resume="allow",
            dir=str(root),
            settings=wandb.Settings(console="off"),  # the terminal is ours
            config={k: str(v) if isinstance(v, Path) else v for k, v in config.items()},
        )
        kept.keep(self._run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(values), step=step)

    def close(self, outcome: Outcome = "finished") -> None:
        """See `Tracker.close`."""
        self._run.finish(exit_code=0 if outcome == "finished" else 1)


_MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow:
    """MLflow: to the server that MLFLOW_TRACKING_URI names, or else into files in RUN/mlruns.

    Args: see `TensorBoard`.
    """

    def __init__(self, root: Path, config: Mapping[str, Any], step: int) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # MLflow 3 wants a word before it writes files, for which this is the place: one run, one folder.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (root / "mlruns").resolve().as_uri()
        # The default, 7, takes minutes to say that no server is there; the other ranks wait meanwhile.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        mlflow = _require("mlflow", "mlflow-skinny")
        self._entities = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        kept = _Kept(root, "mlflow", step)
        self._id = kept.value
        if self._id is None:
            known = self._client.get_experiment_by_name("feedline")
            experiment = known.experiment_id if known else self._client.create_experiment("feedline")
            self._id = self._client.create_run(experiment, run_name=root.name).info.run_id
            kept.keep(self._id)
            for name, value in config.items():
                self._client.log_param(self._id, name, value)
        else:
            self._client.update_run(self._id, "RUNNING")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        metric = self._entities.Metric
        now_ms = int(1000 * time.time())
        rows = [metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=rows)

    def close(self, outcome: Outcome = "finished") -> None:
        """See `Tracker.close`."""
        self._client.set_terminated(self._id, _MLFLOW_STATUS[outcome])


class _Kept:
    """The name that a tracker has given the run, kept in RUN/trackers.json for when it goes on."""

    def __init__(self, root: Path, tracker: str, step: int) -> None:
        self._path, self._tracker = root / "trackers.json", tracker
        self.value: str | None = self._all().get(tracker) if step else None

    def keep(self, value: str) -> None:
        """Write it down."""
        self._path.write_text(json.dumps({**self._all(), self._tracker: value}) + "\n", encoding="utf-8")

    def _all(self) -> dict[str, str]:
        if not self._path.exists():
            return {}
        values: dict[str, str] = json.loads(self._path.read_text(encoding="utf-8"))
        return values


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def open_trackers(
    names: Sequence[str], root: Path, config: Mapping[str, Any], step: int
) -> list[BackgroundTracker]:
    """Start the trackers of these names.

    Raises:
        FeedlineError: one cannot be started.
    """
    opened: list[BackgroundTracker] = []
    try:
        opened.extend(_open(name, root, config, step) for name in names)
    except FeedlineError:
        for tracker in opened:
            tracker.close("failed")
        raise
    return opened


def _open(name: str, root: Path, config: Mapping[str, Any], step: int) -> BackgroundTracker:
    try:
        return BackgroundTracker(name, TRACKERS[name](root, config, step))
    except FeedlineError:
        raise
    # Each library has exceptions of its own, and hands on those of its HTTP client.
    except Exception as error:
        raise FeedlineError(
            f"--trackers: {name} cannot be started: {first_line(error)}; see to it, or leave {name} out"
        ) from error


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers among nested values, by names joined with slashes."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update(numbers(value, f"{prefix}{name}/"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    return found


def _require(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FeedlineError(
            f"--trackers needs {package}, which is not installed ({error}): pip install 'feedline[trackers]', or "
            f"pip install {package}"
        ) from error
