"""A plan, and trainings that only write what a training writes, for tests of `python -m train sweep`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from train.sweep.plan import Plan
from train.sweep.space import parse_search

FLAGS = {
    "lr",
    "weight-decay",
    "batch-size",
    "epochs",
    "duration",
    "flip-tta",
    "scale",
    "run-dir",
    "data",
    "recipe",
}
SPACE = parse_search(["lr=log(1e-3,1)", "batch-size=choice(32,64)"], FLAGS)
PLAN = Plan(flags=("--data", "somewhere", "--recipe", "digits"), space=SPACE, prune="none")


@dataclass
class Part:
    """What a training does: it evaluates to these values, an epoch each, and ends with a status."""

    values: Sequence[float] = (50.0, 60.0)
    status: int = 0
    last_words: str = ""


def good(flags: dict[str, str], number: int, starts: int) -> Part:
    """The nearer lr is to 0.1, the better."""
    top1 = 90 - 100 * abs(float(flags["lr"]) - 0.1)
    return Part((top1 / 2, top1))


@dataclass
class Stage:
    """Starts played trainings; see `train.sweep.process.Start`.

    Attributes:
        part: of a trial's flags, its number, and how often it was started.
        on_poll: called at every poll of any training.
        at_work: slots in use.
        most: most at a time.
        stopped: numbers of trials that were asked to stop.
    """

    part: Callable[[dict[str, str], int, int], Part] = good
    on_poll: Callable[[], None] = lambda: None
    at_work: set[int] = field(default_factory=set)
    most: int = 0
    stopped: list[int] = field(default_factory=list)
    starts: dict[int, int] = field(default_factory=dict)

    def __call__(self, flags: Sequence[str], folder: Path, slot: int) -> Played:
        """Start one."""
        number = int(folder.name.removeprefix("trial-"))
        self.starts[number] = self.starts.get(number, 0) + 1
        given = dict(zip((word[2:] for word in flags[::2]), flags[1::2], strict=True))
        assert slot not in self.at_work
        self.at_work.add(slot)
        self.most = max(self.most, len(self.at_work))
        (folder / "output.log").touch()
        return Played(self, self.part(given, number, self.starts[number]), folder, slot, number)


@dataclass
class Played:
    """A played training: an epoch per poll; goes on where the metrics end, as the engine's own do."""

    stage: Stage
    part: Part
    folder: Path
    slot: int
    number: int
    asked: bool = False

    def poll(self) -> int | None:
        """Evaluate once; None until the end."""
        self.stage.on_poll()
        if self.asked:
            return self._leave(128 + signal.SIGTERM)
        metrics = self.folder / "metrics.jsonl"
        done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        if done < len(self.part.values):
            line = {"kind": "eval", "epoch": done + 1, "top1": self.part.values[done], "loss": 1 / (done + 1)}
            with metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
            return None
        if self.part.status == 0:
            (self.folder / "summary.json").write_text(json.dumps({"wall_s": 12.0}))
        return self._leave(self.part.status)

    def stop(self) -> None:
        """The next poll is the last."""
        self.asked = True
        self.stage.stopped.append(self.number)

    def reason(self) -> str:
        """Last words."""
        return self.part.last_words

    def _leave(self, status: int) -> int:
        self.stage.at_work.discard(self.slot)
        return status
