"""`python -m train sweep`: the search space, the plan in its file, and trainings as processes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.errors import FeedlineError
from tests.train.played import FLAGS, PLAN, SPACE
from train.config import Config, save
from train.schedule import ScheduleConfig
from train.sweep import child, process
from train.sweep.loop import evaluations, last_epoch
from train.sweep.plan import Checked, Plan, check_plan, load_plan, require_same, save_plan
from train.sweep.process import last_error
from train.sweep.space import Dimension, parse_search
from train.sweep.study import settle


def test_the_space_of_the_issue() -> None:
    words = ["lr=log(1e-4,1)", "--weight_decay=log(1e-6, 1e-2) batch-size=choice(64,128)", "epochs=int:2,6,2"]
    lr, decay, batch, epochs = parse_search(words, FLAGS)
    assert lr == Dimension(flag="lr", kind="log", low=1e-4, high=1)
    assert (decay.flag, decay.high) == ("weight-decay", 1e-2)
    assert batch.words("128") == ["--batch-size", "128"]
    assert (epochs.high, epochs.step, epochs.words(4)) == (6, 2, ["--epochs", "4"])
    assert parse_search(["flip-tta=choice(true,false)"], FLAGS)[0].choices == ("True", "False")
    (scale,) = parse_search(["scale=choice(0.08 1,0.25 1)"], FLAGS)
    assert scale.words("0.25 1") == ["--scale", "0.25", "1"]


numbers = st.floats(1e-6, 1e6).map(lambda x: float(f"{x:.6g}"))
ranges = st.tuples(numbers, numbers).filter(lambda pair: pair[0] < pair[1])


@settings(max_examples=30)
@given(ranges, st.sampled_from(["log", "uniform"]))
def test_a_dimension_is_read_from_its_text(bounds: tuple[float, float], kind: str) -> None:
    (one,) = parse_search([f"lr={kind}({bounds[0]!r},{bounds[1]!r})"], FLAGS)
    assert parse_search([str(one)], FLAGS) == (one,)
    assert (one.corner(0), one.corner(1)) == bounds


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["lrr=log(1e-4,1)"], r"lrr, and there is no such flag; did you mean '--lr'\?"),
        (["lr=log"], "has 'lr=log'; give NAME=log"),
        (["lr=log(1e-4,1"], "give NAME=log"),
        ([""], "--search is empty; give NAME=log"),
        ([" ", ""], "--search is empty; give NAME=log"),
        (["lr=normal(0,1)"], r"has lr=normal\(0,1\); give NAME=log"),
        (["lr=log(0,1)"], "above 0"),
        (["lr=uniform(1,1)"], "first number must be less"),
        (["lr=uniform(0,nan)"], "first number must be less"),
        (["lr=uniform(a,b)"], "uniform takes numbers"),
        (["epochs=int(1,2.5)"], "int takes whole numbers"),
        (["epochs=int(1)"], "int takes two or three numbers"),
        (["epochs=int(1,3,5)"], "the step must be 1 … 2"),
        (["batch-size=choice(64)"], "two or more different values"),
        (["batch-size=choice(64,64)"], "two or more different values"),
        (["lr=log(1e-4,1) lr=log(1e-3,1)"], "has lr twice"),
        (["run-dir=choice(a,b)"], "every trial has its own run folder"),
    ],
)
def test_mistakes_in_the_space(words: list[str], reason: str) -> None:
    with pytest.raises(FeedlineError, match=reason):
        parse_search(words, FLAGS)


@pytest.mark.parametrize(
    ("flags", "words", "reason"),
    [
        (("--lr", "1"), ["lr=log(1e-4,1)"], "--lr is both searched and given"),
        (("--duration=3ep",), ["epochs=int(1,3)"], "--epochs is both searched and given"),
        (("--no-flip-tta",), ["flip-tta=choice(true,false)"], "--flip-tta is both searched and given"),
        ((), ["epochs=int(1,3)", "duration=choice(1ep,2ep)"], "epochs and duration, which set the same"),
        (("--model", "resnet18"), ["arch=choice(resnet26,resnet50)"], "--arch is both searched and given"),
        (("--freeze", "conv1"), ["freeze-epochs=int(1,3)"], "--freeze-epochs is both searched and given"),
        (("--run_dir", "x"), ["lr=log(1e-4,1)"], "--run-dir makes no sense in a sweep"),
    ],
)
def test_flags_that_do_not_go_together(flags: tuple[str, ...], words: list[str], reason: str) -> None:
    with pytest.raises(FeedlineError, match=reason):
        Plan(flags=flags, space=parse_search(words, {*FLAGS, "arch", "freeze-epochs"}))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["batch-size=log(4,8)"], r"with --batch-size 4\.0: .*invalid literal for int"),
        (["batch-size=choice(8,4000)"], r"with --batch-size 4000: .*120 samples, fewer than batch_size"),
        (["optimizer=choice(sgd,sgdd)"], "with --optimizer sgdd: "),
        (
            ["lr=log(1e-3,1)", "momentum=uniform(-2,0.9)"],
            r"with --lr 0\.001 --momentum -2\.0: momentum is -2",
        ),
    ],
)
def test_values_that_no_training_takes_are_found_before_any(
    flags: list[str], words: list[str], reason: str
) -> None:
    given = set(parse_names(words))
    base = [w for at, w in enumerate(flags) if not ({w[2:], flags[at - 1][2:]} & given and at)]
    space = parse_search(words, {*FLAGS, "optimizer", "momentum"})
    with pytest.raises(FeedlineError, match=f"a trial could not run, {reason}"):
        check_plan(Plan(flags=tuple(base), space=space))


def test_images_of_pretrained_weights_are_settled_as_in_a_training(flags: list[str]) -> None:
    base = [
        w
        for at, w in enumerate(flags)
        if not {"--size", "--eval-size", "--lr", "--arch"} & {w, flags[at - 1]}
    ]
    tuning = ["--arch", "vit_tiny_patch16_384", "--pretrained", "timm", "--model-input"]
    plan = Plan(flags=(*base, *tuning), space=parse_search(["lr=log(1e-4,1)"], FLAGS))
    check_plan(plan)  # which takes images of 384 px alone


def parse_names(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words]


def checked(**change: object) -> Checked:
    return Checked(plan=replace(PLAN, **change), config=Config(), fingerprint="abc")  # type: ignore[arg-type]


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    settle(tmp_path / "study", checked())
    settle(tmp_path / "study", checked())
    assert load_plan(tmp_path / "study" / "study.json") == checked()
    cases = {
        r"--search lr=log\(0\.001,1\) → lr=log\(0\.0001,1\)": checked(
            space=parse_search(["lr=log(1e-4,1)", "batch-size=choice(32,64)"], FLAGS)
        ),
        r"--search batch-size=choice\(32,64\) → not there": checked(space=SPACE[:1]),
        "--metric top1 → loss; --prune none → median": checked(metric="loss", prune="median"),
        "--data is another dataset": replace(checked(), fingerprint="def"),
        "--seed 0 → 1": replace(checked(), config=Config(seed=1)),
    }
    for reason, other in cases.items():
        with pytest.raises(FeedlineError, match=f"study holds a study of something else .*{reason}"):
            settle(tmp_path / "study", other)
    # Where and how fast it computes is free, as when a run goes on.
    require_same(checked(), replace(checked(), config=Config(device="cpu", log_every=7)), tmp_path)


def test_a_folder_that_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(FeedlineError, match=r"is no study, and holds photo\.jpg"):
        settle(tmp_path, checked())
    with pytest.raises(FeedlineError, match=r"is no study .* give one of `sweep`"):
        load_plan(tmp_path / "study.json")
    save_plan(checked(), tmp_path / "study.json")
    for damaged in ((tmp_path / "study.json").read_text()[:-9], '{"format": 1}', '{"format": 1, "flags": 2}'):
        (tmp_path / "study.json").write_text(damaged)
        with pytest.raises(FeedlineError, match="is damaged"):
            load_plan(tmp_path / "study.json")


def test_evaluations_of_averaged_weights_count_where_there_are_some(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1}\n{"kind": "eval", "epoch": 1, "top1": 5, "ema_top1": 6}\n'
        '{"kind": "eval", "epoch": 2, "top1": 7, "ema_to'
    )
    assert evaluations(tmp_path, "top1") == {1: 6}


@pytest.mark.parametrize(("duration", "epoch"), [("3ep", 3), ("2.5ep", 3), ("500st", None)])
def test_the_last_epoch_of_a_run(tmp_path: Path, duration: str, epoch: int | None) -> None:
    assert last_epoch(tmp_path) is None  # it has not begun
    save(Config(schedule=ScheduleConfig(duration=duration, warmup="0ep")), tmp_path / "config.yaml")
    assert last_epoch(tmp_path) == epoch


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("epoch 1\nerror: lr is -1; it must be positive\n", "lr is -1; it must be positive"),
        ("Traceback …\ntorch.OutOfMemoryError: no room\n\nexit\n", "torch.OutOfMemoryError: no room"),
        ("step 1\rstep 2\rKilled", "Killed"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_line_that_tells_what_was_wrong(tmp_path: Path, output: str, reason: str) -> None:
    (tmp_path / "output.log").write_text(output)
    assert last_error(tmp_path / "output.log") == reason


def test_trials_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(process, "usable_cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert process.surroundings(2, 3) == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "0"}
    assert process.share_of_cores(["--lr", "1"], 3) == ["--loader-threads", "2"]
    assert process.share_of_cores(["--loader_threads=5"], 3) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert process.surroundings(1, 1) == {"CUDA_VISIBLE_DEVICES": "6"}


def test_a_training_ends_with_the_sweep_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(child, "_EVERY_S", 0.001)
    parents = iter([7, 7, 1])
    monkeypatch.setattr("os.getppid", lambda: next(parents))
    monkeypatch.setattr("os.kill", lambda *told: sent.append(told))
    child.end_with(7).join(10)
    assert sent == [(os.getpid(), signal.SIGTERM)]
