"""`python -m train sweep`: the study folder, and trials that end in every way."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shard.errors import FeedlineError
from tests.train.played import PLAN, Part, Stage, good
from train.cli import parse
from train.stop import Stopped
from train.sweep.loop import Sweep
from train.sweep.picture import _unimportant, draw, importances
from train.sweep.study import REASON, Held, Study
from train.sweep.table import report

Open = Callable[..., Study]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study without trials, to be copied: making the database takes long."""
    root = tmp_path_factory.mktemp("empty") / "study"
    root.mkdir()
    Study(root, PLAN)
    return root


@pytest.fixture
def open_study(empty: Path, tmp_path: Path) -> Open:
    """Opens a study, the same each time: as another process would."""
    shutil.copytree(empty, tmp_path / "study")
    return lambda plan=PLAN: Study(tmp_path / "study", plan)


def run(study: Study, stage: Stage, *, trials: int = 12, workers: int = 2) -> list[str]:
    """Work on a study, and return what was said."""
    said: list[str] = []
    Sweep(study, stage, workers=workers, trials=trials, say=said.append, poll_s=0, wait_s=0).run()
    return said


def states(study: Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_twelve_trials_by_two_workers(open_study: Open, tmp_path: Path) -> None:
    study, stage = open_study(), Stage()
    said = run(study, stage)
    assert states(study) == ["COMPLETE"] * 12
    assert stage.most == 2
    assert sorted(path.name for path in study.root.glob("trial-*")) == [f"trial-{i:04d}" for i in range(12)]
    assert len({trial.params["lr"] for trial in study.trials}) == 12
    best = study.best
    assert best is not None
    assert best.value == max(trial.value for trial in study.trials)
    text = report(study)
    assert "12 trials (12 finished)" in text
    assert text.splitlines()[3].split()[:2] == [str(best.number), "finished"]
    command = shlex.split(text.splitlines()[-1])
    assert command[:3] == ["python", "-m", "train"]
    again = parse(command[3:]).settings
    assert (again.optim.lr, again.input.batch_size) == (best.params["lr"], int(best.params["batch-size"]))
    assert sum("after 2 epochs" in line for line in said) == 12
    assert run(study, stage) == []  # nothing is left to do
    shares = importances(study)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda name: shares[name]) == "lr"  # the batch size has no part in the value
    paths, missing = draw(study)
    assert (sorted(path.name for path in paths), missing) == (
        ["history.png", "importance.png", "slices.png"],
        "",
    )
    assert all(np.ptp(np.asarray(Image.open(path))) == 255 for path in paths)


def test_trials_that_fail_do_so_alone(open_study: Open) -> None:
    def part(flags: dict[str, str], number: int, starts: int) -> Part:
        return {
            1: Part((), 1, "torch.OutOfMemoryError: CUDA out of memory"),
            2: Part((float("nan"),), 0),
            3: Part((40.0,), 1, "the loss is not finite"),
        }.get(number, good(flags, number, starts))

    study = open_study()
    said = run(study, Stage(part), trials=5)
    assert states(study) == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    reasons = [study.trials[i].user_attrs[REASON] for i in (1, 2, 3)]
    assert reasons[0] == "torch.OutOfMemoryError: CUDA out of memory"
    assert reasons[1] == "no evaluation has a finite top1"
    assert "trial 3: failed: the loss is not finite" in said
    assert "CUDA out of memory" in report(study)
    assert _unimportant(study) == "it takes 10 trials with a value, and there are 2"


def test_a_study_without_hope_ends(open_study: Open) -> None:
    study, stage = open_study(), Stage(lambda flags, number, starts: Part((), 1, "no such GPU"))
    with pytest.raises(FeedlineError, match=r"all 3 trials have failed, .* no such GPU; see .*output\.log"):
        run(study, stage, trials=9, workers=1)
    assert states(study) == ["FAIL"] * 3
    with pytest.raises(FeedlineError, match=r"all 4 trials .* again, with a larger --trials$"):
        run(study, stage, trials=4, workers=1)  # failed ones count: the same command would do nothing


def test_a_study_folder_that_takes_no_more(open_study: Open) -> None:
    study = open_study()
    study.folder(0).write_text("in the way")
    with pytest.raises(FeedlineError, match=r"cannot make the run folder .*trial-0000"):
        study.take(1)


def test_a_training_that_is_killed_goes_on_where_it_was(open_study: Open) -> None:
    def part(flags: dict[str, str], number: int, starts: int) -> Part:
        whole = good(flags, number, starts)
        return Part(whole.values[:1], -signal.SIGKILL) if number == 1 and starts == 1 else whole

    study, stage = open_study(), Stage(part)
    said = run(study, stage, trials=3)
    assert states(study) == ["COMPLETE"] * 3
    assert stage.starts[1] == 2
    assert "trial 1: killed by signal 9; going on with it" in said
    assert len((study.folder(1) / "metrics.jsonl").read_text().splitlines()) == 2


def test_what_is_killed_again_and_again_fails(open_study: Open) -> None:
    study, stage = open_study(), Stage(lambda flags, number, starts: Part((), -signal.SIGKILL))
    run(study, stage, trials=1)
    assert (states(study), stage.starts) == (["FAIL"], {0: 3})
    assert study.trials[0].user_attrs[REASON] == "killed by signal 9, 3 times"
    assert "no trial has been finished yet" in report(study)
    assert draw(study) == ([], "no pictures yet: no trial has been finished")


def test_trials_without_prospects_are_ended(open_study: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(flags: dict[str, str], number: int, starts: int) -> Part:
        if number == 7:
            return Part((10.0, 11.0))
        return Part((50.0, 60.0 + number, 70.0)) if number < 5 else Part((10.0, 11.0, 12.0, 13.0, 14.0))

    monkeypatch.setattr(
        "train.sweep.loop.last_epoch", lambda folder: 2 if folder.name == "trial-0007" else None
    )

    study, stage = open_study(replace(PLAN, prune="median")), Stage(part)
    run(study, stage, trials=8, workers=1)
    assert states(study) == ["COMPLETE"] * 5 + ["PRUNED"] * 2 + [
        "COMPLETE"
    ]  # whose second epoch was its last
    assert stage.stopped == [5, 6]
    assert study.trials[5].value == 11  # at the second epoch: the first decides nothing
    lines = report(study).splitlines()
    assert [line.split()[1] for line in lines[3:11]] == ["finished"] * 6 + ["pruned"] * 2


def test_a_signal_stops_in_good_order_and_the_same_goes_on(open_study: Open) -> None:
    polls: list[int] = []

    def on_poll() -> None:
        polls.append(0)
        if len(polls) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    study, stage = open_study(), Stage(on_poll=on_poll)
    with pytest.raises(Stopped) as stopped:
        run(study, stage, trials=4)
    assert stopped.value.status == 130
    assert stage.at_work == set()
    going = [trial.number for trial in study.trials if trial.state.name == "RUNNING"]
    assert going == stage.stopped != []
    assert f"{len(going)} paused" in report(study)
    for _ in range(3):  # stopping is no death, however often
        study.pause(taken(study.take(1)))
    before = [trial.params for trial in study.trials]
    said = run(study, Stage(), trials=4)
    assert states(study) == ["COMPLETE"] * 4
    assert [trial.params for trial in study.trials][: len(before)] == before
    assert said[0].startswith(f"trial {going[0]}: going on with lr ")


def taken(held: Held | None) -> Held:
    assert held is not None
    return held


def test_processes_share_the_trials(open_study: Open) -> None:
    one, other = open_study(), open_study()
    numbers = [taken(study.take(5)).number for study in (one, other, one, one, other)]
    assert numbers == [0, 1, 2, 3, 4]
    assert one.take(5) is None
    assert other.take(5) is None  # it does not take what the first has


def test_who_looks_is_in_nobodys_way(open_study: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = open_study(), open_study()
    lock = other._lock
    monkeypatch.setattr("train.sweep.study._BUSY_S", 0)

    def meanwhile(number: int) -> int | None:
        found = lock(number)
        with pytest.raises(FeedlineError, match="another process has"):  # it would wait, for a minute
            one.take(1)
        return found

    monkeypatch.setattr(other, "_lock", meanwhile)
    assert not other.at_work(0)
    assert taken(one.take(1)).number == 0


def test_trials_of_a_killed_process_are_taken_over(open_study: Open) -> None:
    one, other, one_more = open_study(), open_study(), open_study()
    first, second = taken(one.take(5)), taken(one.take(5))
    one.report(first, 1, 33.0)
    assert "2 trials (2 running)" in report(other)
    os.close(first.lock)  # as the kernel does for who is killed
    assert "2 trials (1 paused, 1 running)" in report(other)
    again = taken(other.take(5))
    assert (again.number, again.values, again.reported) == (first.number, first.values, {1})
    assert taken(other.take(5)).number == second.number + 1
    os.close(again.lock)
    third = taken(one_more.take(5))
    assert third.number == first.number
    os.close(third.lock)
    one_more = open_study()
    assert taken(one_more.take(5)).number == 3  # the third death fails a trial
    assert one_more.trials[0].state.name == "FAIL"
    assert one_more.trials[0].user_attrs[REASON] == "the process that had it was killed, 3 times"


def test_a_trial_that_ends_just_now_is_not_taken_over(
    open_study: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = open_study(), open_study()
    theirs, lock = taken(one.take(1)), other._lock

    def late(number: int) -> int | None:
        one.complete(theirs, 5.0)
        return lock(number)

    monkeypatch.setattr(other, "_lock", late)
    assert other.take(1) is None
    assert states(other) == ["COMPLETE"]


def test_a_damaged_database(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database " * 100)
    with pytest.raises(FeedlineError, match=r"study\.db cannot be used: .*not a database"):
        Study(tmp_path, PLAN)


def test_a_process_waits_for_the_trials_of_others(open_study: Open) -> None:
    one, other = open_study(), open_study()
    theirs = taken(one.take(4))
    polls: list[int] = []

    def on_poll() -> None:
        polls.append(0)
        if len(polls) == 5:
            os.close(theirs.lock)

    run(other, Stage(on_poll=on_poll), trials=3)
    assert states(other) == ["COMPLETE"] * 3


def test_proposals_depend_on_seed_number_and_history_alone(empty: Path, tmp_path: Path) -> None:
    values = []
    for name in ("a", "b"):
        shutil.copytree(empty, tmp_path / name)
        whole = Study(tmp_path / name, PLAN, seed=3)
        parts = []
        for _ in range(2):
            held = taken(whole.take(9))
            parts.append(held.values)
            whole.complete(held, 1.0)
            if name == "b":
                whole = Study(
                    tmp_path / name, PLAN, seed=3
                )  # begun again: it does not propose the same again
        values.append(parts)
    assert values[0] == values[1]
    assert values[0][0] != values[0][1]


def test_the_loss_is_minimised(empty: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, metric="loss")
    (tmp_path / "study").mkdir()
    study = Study(tmp_path / "study", plan)
    run(study, Stage(lambda flags, number, starts: Part((1.0,) * (1 + number))), trials=3)
    assert study.best is not None
    assert (study.best.number, study.best.value) == (2, pytest.approx(1 / 3))
    assert report(study).splitlines()[3].split()[0] == "2"
