"""The study folder: which trials there are, who has which, and what they found."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from loader.locks import EXCLUSIVE, open_lock, try_lock, unlock
from shard.errors import FeedlineError
from train.sweep.plan import Checked, Plan, load_plan, require_same, save_plan
from train.sweep.space import Value

PLAN, DATABASE = "study.json", "study.db"
_BUSY_S = 60.0  # what others do with the database takes milliseconds
_MOST_DEATHS = 2  # of one trial's processes; the next one fails it: it may be what kills them

# What is noted with a trial.
DEATHS, PAUSED, REASON = "deaths", "paused", "reason"


@dataclass(slots=True, kw_only=True)
class Held:
    """A trial that this process has.

    Attributes:
        number: of the trial, from 0.
        values: of the searched flags.
        folder: its run folder.
        reported: epochs whose evaluation the study knows.
    """

    number: int
    values: dict[str, Value]
    folder: Path
    trial: optuna.Trial = field(repr=False)
    lock: int = field(repr=False)
    reported: set[int]


def settle(root: Path, checked: Checked) -> None:
    """Make a study folder, or see that the one that is there is of the same plan.

    Raises:
        FeedlineError: it is of another one, or the folder cannot be made.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FeedlineError(f"cannot make the study folder {root}: {error.strerror}") from error
    path = root / PLAN
    with _locked(root):
        if path.exists():
            require_same(load_plan(path), checked, root)
        elif others := sorted(p.name for p in root.iterdir() if p.name != ".lock"):
            raise FeedlineError(f"{root} is no study, and holds {others[0]}; give another --study")
        else:
            save_plan(checked, path)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep other processes from choosing a trial at the same time.

    Raises:
        FeedlineError: the folder cannot be written, or another process has it for a minute.
    """
    try:
        lock = open_lock(root / ".lock")
    except OSError as error:
        raise FeedlineError(f"cannot write in the study folder {root}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + _BUSY_S
        while not try_lock(lock, EXCLUSIVE):
            if time.monotonic() > deadline:
                raise FeedlineError(f"another process has {root / '.lock'} for a minute; end it")
            time.sleep(0.02)
        yield
    finally:
        unlock(lock)


class Study:
    """Trials of a plan, in a folder that any number of processes share.

    Who holds the lock on a trial's folder has the trial. The kernel drops the locks of a process that dies, so a trial
    without an end whose lock is free is one to go on with, at once and on any machine that shares the folder.

    Args:
        root: the folder, with its plan; see `settle`.
        plan: what is searched.
        seed: of the proposals.

    Raises:
        FeedlineError: the database cannot be read or written.
    """

    def __init__(self, root: Path, plan: Plan, seed: int = 0) -> None:
        self.root, self.plan, self._seed = root, plan, seed
        self._mine: set[int] = set()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            with _locked(root):
                storage = optuna.storages.RDBStorage(
                    f"sqlite:///{root / DATABASE}", engine_kwargs={"connect_args": {"timeout": _BUSY_S}}
                )
                self._study = optuna.create_study(
                    storage=storage,
                    study_name="sweep",
                    direction="maximize" if plan.maximised else "minimize",
                    pruner=_pruner(plan),
                    load_if_exists=True,
                )
        # A database of another version of Optuna is a RuntimeError.
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError, RuntimeError) as error:
            raise FeedlineError(f"the database {root / DATABASE} cannot be used: {_first(error)}") from error

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        found: list[FrozenTrial] = self._study.get_trials(deepcopy=False)
        return found

    @property
    def inner(self) -> optuna.Study:
        """What Optuna knows of it."""
        return self._study

    @property
    def best(self) -> FrozenTrial | None:
        """The finished trial with the best value."""
        done = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        sign = 1 if self.plan.maximised else -1
        return max(done, key=lambda trial: sign * trial.value, default=None)

    def unfinished(self) -> int:
        """How many trials have no end yet."""
        return sum(not trial.state.is_finished() for trial in self.trials)

    def take(self, limit: int) -> Held | None:
        """Take a trial that nobody works on, or else a new one; None: there is none, or there are `limit` trials."""
        with _locked(self.root):
            trials = self.trials
            for trial in trials:
                if (
                    not trial.state.is_finished()
                    and trial.number not in self._mine
                    and (held := self._adopt(trial))
                ):
                    return held
            if len(trials) >= limit:
                return None
            # A generator that starts anew with each process would propose the same again; this one depends on the
            # number and on what was found before.
            self._study.sampler = _sampler(len(self.plan.space), self._seed, len(trials))
            trial = self._study.ask()
            lock = self._lock(trial.number)
            assert lock is not None  # nobody else has this number, and `at_work` waits
            return self._held(trial, lock, set())

    def folder(self, number: int) -> Path:
        """Run folder of a trial."""
        return self.root / f"trial-{number:04d}"

    def at_work(self, number: int) -> bool:
        """Whether a process, here or elsewhere, has the trial."""
        with _locked(self.root):  # whoever takes a trial must not find its lock in our hands
            lock = self._lock(number)
            if lock is not None:
                unlock(lock)
        return lock is None

    def report(self, held: Held, epoch: int, value: float) -> bool:
        """Tell what an epoch's evaluation found; returns whether the trial should be pruned."""
        held.reported.add(epoch)
        held.trial.report(value, epoch)
        return bool(held.trial.should_prune())

    def complete(self, held: Held, value: float) -> None:
        """The trial is finished."""
        self._study.tell(held.number, value)
        self._leave(held)

    def prune(self, held: Held) -> None:
        """The trial was ended early; its last report is its value."""
        self._study.tell(held.number, state=TrialState.PRUNED)
        self._leave(held)

    def fail(self, held: Held, reason: str) -> None:
        """The trial cannot be finished."""
        held.trial.set_user_attr(REASON, reason)
        self._study.tell(held.number, state=TrialState.FAIL)
        self._leave(held)

    def pause(self, held: Held) -> None:
        """The trial was stopped in good order; who comes next goes on with it."""
        held.trial.set_user_attr(PAUSED, True)
        self._leave(held)

    def died(self, held: Held, reason: str) -> bool:
        """The trial's training was killed; returns whether to start it again. If not, it has failed."""
        deaths = held.trial.user_attrs.get(DEATHS, 0) + 1
        held.trial.set_user_attr(DEATHS, deaths)
        if deaths <= _MOST_DEATHS:
            return True
        self.fail(held, f"{reason}, {deaths} times")
        return False

    def _adopt(self, frozen: FrozenTrial) -> Held | None:
        """Take over the trial of a process that is no more; None if it is at work, or the trial has ended."""
        lock = self._lock(frozen.number)
        if lock is None:
            return None
        frozen = self.trials[frozen.number]  # who had it may have ended it just now
        if frozen.state.is_finished():
            unlock(lock)
            return None
        held = self._held(optuna.Trial(self._study, frozen._trial_id), lock, set(frozen.intermediate_values))
        if held.trial.user_attrs.get(PAUSED):
            held.trial.set_user_attr(PAUSED, False)
        elif not self.died(held, "the process that had it was killed"):
            return None
        return held

    def _held(self, trial: optuna.Trial, lock: int, reported: set[int]) -> Held:
        values = {one.flag: one.suggest(trial) for one in self.plan.space}
        self._mine.add(trial.number)
        return Held(
            number=trial.number, values=values, folder=self.folder(trial.number), trial=trial, lock=lock,
            reported=reported,
        )  # fmt: skip

    def _lock(self, number: int) -> int | None:
        folder = self.folder(number)
        try:
            folder.mkdir(exist_ok=True)
            lock = open_lock(folder / ".sweep")
        except OSError as error:
            raise FeedlineError(f"cannot make the run folder {folder}: {error.strerror}") from error
        if try_lock(lock, EXCLUSIVE):
            return lock
        unlock(lock)
        return None

    def _leave(self, held: Held) -> None:
        self._mine.discard(held.number)
        unlock(held.lock)


def _sampler(dimensions: int, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """TPE (Bergstra et al. 2011) of all dimensions together; trials that still run count as bad ones.

    Bad ones, so that workers at the same time do not all try the same place ("constant liar", Ginsbourger et al. 2010).
    """
    (mixed,) = np.random.SeedSequence([seed % 2**32, number]).generate_state(1).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=min(10, max(5, 2 * dimensions)),
            multivariate=True,
            constant_liar=True,
            seed=mixed,
        )


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    """Median: worse than half of the others at that epoch, from the second on. Halving: asynchronous, by thirds."""
    if plan.prune == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)
    if plan.prune == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return optuna.pruners.NopPruner()


def _first(error: Exception) -> str:
    return str(error.__cause__ or error).splitlines()[0]
