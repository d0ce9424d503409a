"""The guard as CI runs it, on a tiny dataset; what is compared, never how fast it is."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.__main__ import main
from bench.commands.guard import PROGRAM
from bench.guard import contest
from bench.guard.baseline import Baseline, save
from bench.guard.by_hand import ByHand
from bench.guard.clock import Spent, run
from bench.guard.pairs import Pair, Workshop
from bench.intervals import Interval
from loader.affinity import usable_ids
from loader.jpeg import Decoder
from loader.reader import Reads
from loader.resolve import usable_cores
from loader.torch_backend import TorchBackend
from shard.dataset import Dataset
from tests.bench.slowed import STAGES, plant
from train.config import Config

SMALL = ["--size", "32", "--batch-size", "8", "--seconds", "0.01", "--device", "cpu"]


def _tasks(folder: Path, **queued: int) -> Path:
    for thread, nanoseconds in queued.items():
        (folder / thread).mkdir(parents=True, exist_ok=True)
        (folder / thread / "schedstat").write_text(f"123 {nanoseconds} 4\n")
    return folder


def test_waiting_for_a_core_is_told_from_sleeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.guard.clock.time.process_time", iter((3.0, 3.001)).__next__)
    tasks = _tasks(tmp_path, a=10**9, b=0)

    def step() -> None:
        time.sleep(0.02)
        _tasks(tmp_path, a=10**9 + 5 * 10**6, b=0, c=3 * 10**6)  # c began meanwhile

    spent = run(step, lambda: None, 0.001, tasks)
    assert spent.queued_s == pytest.approx(0.008)
    assert spent.cpu_s == pytest.approx(0.001)
    assert spent.wall_s >= 0.02


def test_time_of_the_code_is_without_the_queue_but_never_less_than_its_cpu_time() -> None:
    assert Spent(wall_s=0.020, cpu_s=0.002, queued_s=0.008).serial_s == pytest.approx(0.012)
    assert Spent(wall_s=0.020, cpu_s=0.015, queued_s=0.008).serial_s == pytest.approx(0.015)


def test_a_system_without_an_account_has_wall_time_alone(tmp_path: Path) -> None:
    spent = run(lambda: time.sleep(0.001), lambda: None, 0.0, tmp_path / "none")
    assert spent.queued_s == 0


def test_how_many_threads_want_a_core_does_not_depend_on_how_many_they_get() -> None:
    alone = Spent(wall_s=1.0, cpu_s=2.0, queued_s=0.0)
    crowded = Spent(wall_s=4.0, cpu_s=2.0, queued_s=6.0)
    assert alone.threads == crowded.threads == 2
    assert alone.parallel_s == crowded.parallel_s == 1.0


def test_ours_and_the_reference_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "SLICE_S", 0.0)
    monkeypatch.setattr(contest, "LEAST_REPEATS", 2)
    log: list[str] = []
    pairs = [
        Pair(
            name=name, title=name, images=1, serial=serial,
            ours=lambda name=name: log.append(name), reference=lambda name=name: log.append(name.upper()),
        )
        for name, serial in (("a", True), ("b", False))
    ]  # fmt: skip
    signals = contest.contest(
        pairs, lambda: None, contest.Patience(seconds=0, decided=lambda stage, found: True)
    )
    assert "".join(log) == "aAbB" + "aAAaAaaAaAAa" + "bBBb" + "BbbB" + "AaaAaAAaAaaA"
    assert {stage: {name: len(v) for name, v in found.items()} for stage, found in signals.items()} == {
        "a": {"cpu": 6, "time": 6, "wait": 6},
        "b": {"cpu": 2, "time": 2, "threads": 2},
    }


def test_time_goes_where_it_is_not_decided_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "SLICE_S", 0.0)
    monkeypatch.setattr(contest, "LEAST_REPEATS", 2)

    def pair(name: str) -> Pair:
        return Pair(name=name, title=name, images=1, serial=False, ours=lambda: None, reference=lambda: None)

    def decided(stage: str, found: dict[str, Interval]) -> bool:
        looks[stage] = looks.get(stage, 0) + 1
        return stage == "a" or looks[stage] == 4

    looks: dict[str, int] = {}
    patience = contest.Patience(seconds=60, decided=decided)
    signals = contest.contest([pair("a"), pair("b")], lambda: None, patience)
    assert {stage: len(found["cpu"]) for stage, found in signals.items()} == {"a": 2, "b": 5}


class Elsewhere:
    """Stands for the processes of their own: runs their commands in this one, or gives what it is told."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.record: dict[str, Any] | None = None
        self._run = subprocess.run

    def __call__(self, command: list[str], **kwargs: Any) -> Any:
        if "--measure" not in command:  # git
            return self._run(command, **kwargs)
        self.commands.append(command)
        if self.record is not None:
            Path(command[command.index("--out") + 1]).write_text(json.dumps(self.record))
            return subprocess.CompletedProcess(command, 0)
        with contextlib.redirect_stdout(io.StringIO()):
            return subprocess.CompletedProcess(command, main(command[len(PROGRAM) :]))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    one = Elsewhere()
    monkeypatch.setattr("bench.commands.guard.subprocess.run", one)
    return one


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage is measured once, and that is enough."""
    monkeypatch.setattr(contest, "SLICE_S", 0.0)
    monkeypatch.setattr(contest, "SERIAL_TURNS", 1)
    monkeypatch.setattr(contest, "LEAST_REPEATS", 1)
    monkeypatch.setattr("bench.guard.compare.CONFIDENCE", 0.0)


def measured(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*words, "--measure", "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def slower(record: dict[str, Any], folder: Path, *stages: str) -> list[str]:
    """A baseline against which these stages are slow; as this machine may do anything, with a wide margin."""
    run = {
        stage: {
            name: one["value"] * (1e-6 if stage in stages else 1.0)
            for name, one in found.items()
            if name != "threads"
        }
        for stage, found in record["ratios"].items()
    }
    where = Baseline(name="test", margin=20.0, settings=record["settings"], runs=[run], environment={})
    save(folder / "guard.json", where)
    return [
        "--baseline",
        str(folder / "guard.json"),
        "--class",
        "test",
        "--out",
        str(folder / "record.json"),
    ]


@pytest.mark.usefixtures("once")
def test_guard_end_to_end(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], elsewhere: Elsewhere
) -> None:
    threads = torch.get_num_threads()
    words = ["guard", "--data", str(dataset.root), *SMALL]
    record = measured(words, capsys)
    assert list(record["ratios"]) == ["read", "decode", "transform", "loader", "step", "real"]
    assert set(record["ratios"]["loader"]) == {"cpu", "time", "threads"}
    assert main([*words, *slower(record, tmp_path)]) == 0
    assert "no regression" in capsys.readouterr().out
    assert not elsewhere.commands
    stages = ["read", "loader", "step", "real"]
    assert main([*words, *slower(record, tmp_path, *stages)]) == 1
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("REGRESSION")] == [
        "REGRESSION in read", "REGRESSION in step",
    ]  # fmt: skip
    found = json.loads((tmp_path / "record.json").read_text())
    assert found["findings"][0]["followers"] == ["loader", "real"]
    (command,) = elsewhere.commands
    assert command[: len(PROGRAM)] == [sys.executable, "-m", "bench"]
    assert command[command.index("--stages") + 1].split(",") == stages == list(found["again"])
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize(
    ("low", "high", "status", "text"),
    [
        (0.0, 0.0, 0, "by more than 2000 % and the noise."),
        (0.0, 1e9, 0, "too noisy to tell: step (CPU time per image), step (time per image), step (waiting)"),
        (1e9, 1e9, 1, "REGRESSION in step"),
    ],
    ids=["acquitted", "undecided", "confirmed"],
)
def test_what_is_not_seen_again_is_no_regression(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], elsewhere: Elsewhere,
    low: float, high: float, status: int, text: str,
) -> None:  # fmt: skip
    words = ["guard", "--data", str(dataset.root), *SMALL]
    record = measured(words, capsys)
    again = {"value": low, "low": low, "high": high, "confidence": 0.99}
    elsewhere.record = record | {"ratios": {"step": dict.fromkeys(record["ratios"]["step"], again)}}
    assert main([*words, *slower(record, tmp_path, "step")]) == status
    out = capsys.readouterr().out
    assert text in out
    assert f"step, CPU time per image      {low:9.3f}{low:10.3f} – {high:.3f}" in out


@pytest.mark.usefixtures("once")
def test_a_second_look_at_something_else_is_an_error(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], elsewhere: Elsewhere
) -> None:
    words = ["guard", "--data", str(dataset.root), *SMALL]
    record = measured(words, capsys)
    elsewhere.record = record | {"settings": record["settings"] | {"model": "another"}}
    assert main([*words, *slower(record, tmp_path, "step")]) == 1
    assert "was taken with model 'test_resnet'" in capsys.readouterr().err.splitlines()[-1]


def test_single_threads_of_ours_and_of_the_reference_share_a_core(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[frozenset[int]]] = {}

    def watch(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any) -> Any:
            seen.setdefault(f"{owner.__name__}.{name}", set()).add(usable_ids())
            return original(*args)

        monkeypatch.setattr(owner, name, watched)

    threads: list[int] = []
    monkeypatch.setattr(
        "bench.guard.by_hand.ThreadPoolExecutor",
        lambda count: threads.append(count) or ThreadPoolExecutor(count),
    )
    for owner, name in ((Reads, "_read"), (ByHand, "_check"), (Decoder, "window"), (ByHand, "_picture")):
        watch(owner, name)
    images = replace(Config().input, size=32, batch_size=8)
    with Workshop(replace(Config(), data=str(dataset.root), input=images), torch.device("cpu")) as workshop:
        pairs = {pair.name: pair for pair in workshop.make()}
        seen.clear()
        for side in (pairs["read"], pairs["transform"]):
            side.ours()
            side.reference()
        assert len(seen) == 4
        one_core = frozenset({max(usable_ids())}) if hasattr(os, "sched_setaffinity") else usable_ids()
        assert set.union(*seen.values()) == {one_core}
        seen.clear()
        pairs["loader"].reference()
        assert seen["ByHand._picture"] == {usable_ids()}
    assert threads == [usable_cores(), 1]


def test_update_takes_several_runs_with_the_same_flags(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], elsewhere: Elsewhere
) -> None:
    elsewhere.record = {"settings": {"model": "m"}, "ratios": {"read": {"cpu": {"value": 1.0}}}}
    flags = [
        "--data", str(dataset.root), "--recipe", "cifar10_cpu", "--split", "val", "--model", "resnet18",
        "--size", "32", "--batch-size", "8", "--backend", "torch", "--device", "cpu", "--seconds", "0.5",
    ]  # fmt: skip
    file = tmp_path / "guard.json"
    place = ["--baseline", str(file), "--class", "any", "--update"]
    assert main(["guard", *flags, *place, "--runs", "3", "--margin", "0.5"]) == 0
    for command in elsewhere.commands:
        del command[command.index("--out") : command.index("--out") + 2]
    assert elsewhere.commands == [[*PROGRAM, "guard", "--measure", *flags]] * 3
    assert "read       cpu      1.000 (1.000 – 1.000)" in capsys.readouterr().out
    found = json.loads(file.read_text())["classes"]["any"]
    assert (found["margin"], len(found["runs"])) == (0.5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no baseline guard.json; take one on this machine with --update"),
        (["--seconds", "0"], "--seconds is 0.0; it must be positive"),
        (["--margin", "-1"], "--margin is -1.0; it cannot be negative"),
        (["--margin", "0.5"], "--margin is given without --update"),
        (["--stages", "read"], "--stages is given without --measure"),
        (["--measure", "--stages", "read,sleep"], "--stages names 'sleep'; this workload's stages are read,"),
        (["--runs", "3"], "--runs is given without --update"),
        (["--update", "--baseline", "."], "is a folder, a file is to be written there"),
        (["--measure", "--batch-size", "32"], "has 63 samples, the guard needs 4 batches of 32"),
        (["--measure", "--split", "test"], "has no split 'test'"),
    ],
)
def test_mistakes_end_in_one_line(
    dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["guard", "--data", str(dataset.root), *SMALL, *arguments]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_is_planted_does_what_it_says(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from loader import Loader, RandomResizedCrop

    made: list[int] = []
    start = TorchBackend.__init__

    def count(self: TorchBackend, device: torch.device, threads: int, *rest: Any) -> None:
        made.append(threads)
        start(self, device, threads, *rest)

    slept: list[float] = []
    resized = []
    original = torch.nn.functional.interpolate
    monkeypatch.setattr(TorchBackend, "__init__", count)
    monkeypatch.setattr("tests.bench.slowed.time.sleep", slept.append)
    monkeypatch.setattr(
        torch.nn.functional, "interpolate", lambda *a, **k: resized.append(1) or original(*a, **k)
    )
    for kind in STAGES:
        plant(kind, monkeypatch.setattr)
    with Loader(
        dataset, "train", RandomResizedCrop(size=32), batch_size=8, threads=4, backend="torch"
    ) as one:
        next(iter(one))
        prefetched = len(slept)
    assert made == [2]
    assert prefetched >= 8
    assert len(resized) >= 2 * 8 - 2  # of two equal calls each
    assert len(resized) % 2 == 0
    with pytest.raises(SystemExit, match="no planted slow-down 'nothing'"):
        plant("nothing")
