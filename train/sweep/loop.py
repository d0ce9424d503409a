"""Work on a study until it has its trials: start trainings, read what they find, end those without prospects."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from shard.errors import FeedlineError
from train.config import load
from train.distributed import World
from train.metrics import read_lines
from train.run_folder import RunFolder
from train.schedule import parse_duration
from train.stop import REQUEUE, Stopped, StopSignal
from train.sweep.plan import Metric, worth
from train.sweep.process import OUTPUT, Running, Start
from train.sweep.study import REASON, Held, Study

_POLL_S = 0.3
_WAIT_S = 2.0  # between two looks at what others do
_HOPELESS = 3  # trials that have failed, and no other has ended
_STOPPED = (143, 130, REQUEUE)  # exit status of a training that a signal has stopped


@dataclass(slots=True, kw_only=True)
class _Active:
    held: Held
    slot: int
    running: Running
    pruned: bool = False
    values: dict[int, float] = field(default_factory=dict)


class Sweep:
    """Runs trials of a study, some at a time.

    Args:
        study: whose.
        start: starts a trial's training.
        workers: how many trials at a time.
        trials: that the study should have in all.
        say: told what happens, a line each.
        poll_s: time between two looks at the trainings.
        wait_s: time between two looks at what other processes have left.
    """

    def __init__(
        self,
        study: Study,
        start: Start,
        *,
        workers: int,
        trials: int,
        say: Callable[[str], None],
        poll_s: float = _POLL_S,
        wait_s: float = _WAIT_S,
    ) -> None:
        self._study, self._start, self._say = study, start, say
        self._workers, self._trials = workers, trials
        self._poll_s, self._wait_s = poll_s, wait_s
        self._active: list[_Active] = []
        self._looked = -math.inf

    def run(self) -> None:
        """Work until all trials have an end, those of other processes included.

        Raises:
            Stopped: a signal came; the trainings have saved, and the same command goes on with them.
            FeedlineError: the first trials have all failed.
        """
        with ExitStack() as stack:
            signals = stack.enter_context(StopSignal(World()))
            stack.callback(self._abandon)
            while not signals.due():
                self._fill()
                if not self._active and not self._study.unfinished():
                    return
                time.sleep(self._poll_s)
                if self._look():
                    self._require_hope()
            self._stop_all()
            raise Stopped(signals.agreed)

    def _fill(self) -> None:
        """Start trials in free slots."""
        while len(self._active) < self._workers:
            if time.monotonic() < self._looked + self._wait_s:
                return
            held = self._study.take(self._trials)
            if held is None:
                self._looked = time.monotonic()  # others' trials may become free
                return
            slot = min(set(range(self._workers)) - {one.slot for one in self._active})
            again = (held.folder / OUTPUT).exists()
            self._say(f"trial {held.number}: {'going on with ' if again else ''}{_text(held)}")
            self._active.append(_Active(held=held, slot=slot, running=self._launch(held, slot)))

    def _launch(self, held: Held, slot: int) -> Running:
        return self._start(self._study.plan.trial_flags(held.values), held.folder, slot)

    def _look(self) -> bool:
        """See what the trainings have found; returns whether any has ended."""
        before = len(self._active)
        for one in list(self._active):
            status = one.running.poll()  # before the metrics, which are complete then
            self._read(one, running=status is None)
            if status is not None:
                self._ended(one, status)
        return len(self._active) < before

    def _read(self, one: _Active, *, running: bool) -> None:
        one.values = evaluations(one.held.folder, self._study.plan.metric)
        for epoch in sorted(one.values.keys() - one.held.reported):
            if not math.isfinite(one.values[epoch]):
                continue
            prune = self._study.report(one.held, epoch, one.values[epoch])
            if prune and running and not one.pruned and epoch != last_epoch(one.held.folder):
                one.pruned = True
                one.running.stop()

    def _ended(self, one: _Active, status: int) -> None:
        held, metric = one.held, self._study.plan.metric
        name = f"trial {held.number}"
        finite = [value for value in one.values.values() if math.isfinite(value)]
        if status == 0 and RunFolder(held.folder).summary.exists() and finite:
            value = (max if self._study.plan.maximised else min)(finite)
            self._study.complete(held, value)
            epochs = len(one.values)
            self._say(f"{name}: {worth(metric, value)} after {epochs} epoch{'' if epochs == 1 else 's'}")
        elif one.pruned:
            self._study.prune(held)
            self._say(
                f"{name}: pruned after epoch {max(one.values)}, {worth(metric, one.values[max(one.values)])}"
            )
        elif status < 0 or status in _STOPPED:
            what = f"killed by signal {-status}" if status < 0 else f"stopped from outside (status {status})"
            if self._study.died(held, what):
                self._say(f"{name}: {what}; going on with it")
                one.running = self._launch(held, one.slot)
                return
            self._say(f"{name}: failed: {what}")
        else:
            reason = one.running.reason() if status else f"no evaluation has a finite {metric}"
            self._study.fail(held, reason or f"exit status {status}")
            self._say(f"{name}: failed: {reason}")
        self._active.remove(one)
        self._looked = -math.inf

    def _require_hope(self) -> None:
        """End a study whose first trials have all failed: the next ones would, too.

        Raises:
            FeedlineError: they have; with the reason of the last.
        """
        ended = [trial for trial in self._study.trials if trial.state.is_finished()]
        if len(ended) >= _HOPELESS and all(REASON in trial.user_attrs for trial in ended):
            self._stop_all()
            last, more = ended[-1], "" if len(ended) < self._trials else ", with a larger --trials"
            raise FeedlineError(
                f"all {len(ended)} trials have failed, the last one with: {last.user_attrs[REASON]}; "
                f"see {self._study.folder(last.number) / OUTPUT}; mend it and give the same command again{more}"
            )

    def _stop_all(self) -> None:
        """Stop the trainings in good order."""
        for one in self._active:
            one.running.stop()
        while self._active:
            time.sleep(self._poll_s)
            for one in list(self._active):
                status = one.running.poll()
                if status is None:
                    continue
                self._read(one, running=False)
                if one.pruned or status == 0 or (status > 0 and status not in _STOPPED):
                    self._ended(one, status)
                else:
                    self._study.pause(one.held)
                    self._active.remove(one)

    def _abandon(self) -> None:
        """Stop what is left after an error of our own."""
        for one in self._active:
            one.running.stop()


def evaluations(folder: Path, metric: Metric) -> dict[int, float]:
    """What a run's evaluations found, by epoch from 1; of the averaged weights where the run keeps them."""
    lines = read_lines(RunFolder(folder).metrics)
    return {
        line["epoch"]: line.get(f"ema_{metric}", line[metric]) for line in lines if line.get("kind") == "eval"
    }


def last_epoch(folder: Path) -> int | None:
    """Number of a run's last epoch, after which there is nothing to save by ending it; None: not told in epochs."""
    path = RunFolder(folder).config
    if not path.exists():
        return None
    duration = parse_duration(load(path).schedule.duration)
    return math.ceil(duration.value) if duration.unit == "ep" else None


def _text(held: Held) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in held.values.items())
