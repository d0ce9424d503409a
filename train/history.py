"""history.jsonl: when a run was started and on what, how it ended, and which samples it could not decode.

Unlike metrics.jsonl it is never cut back: a run that goes on from an earlier checkpoint keeps what happened after it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loader.bad import BadSample
from shard.errors import FeedlineError
from train.distributed import World
from train.environment import environment
from train.outbox import Outcome


class History:
    """Appends to a run's history; a `train.outbox.Tracker`. A run that is killed leaves no end.

    Args:
        path: of the file.
        step: that the run goes on after; 0: it begins.
        world: the ranks.
    """

    def __init__(self, path: Path, step: int, world: World) -> None:
        self._path, self._step = path, step
        self._bad: set[int] = set()
        self._write("start", step=step, ranks=world.size, environment=environment(world.device))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Remember how far the run is."""
        self._step = step

    def bad(self, samples: Iterable[BadSample]) -> None:
        """Note samples that were masked, each once."""
        for sample in samples:
            if sample.id not in self._bad:
                self._bad.add(sample.id)
                self._write("bad", step=self._step, sample=asdict(sample))

    def close(self, outcome: Outcome = "finished") -> None:
        """Note the end."""
        self._write("end", step=self._step, outcome=outcome)

    def _write(self, event: str, **values: Any) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "date": now, **values}) + "\n")
        except OSError as error:
            raise FeedlineError(f"cannot write {self._path}: {error.strerror}") from error
