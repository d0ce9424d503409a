"""`python -m bench accelerator` as a user runs it, and its check with a made-up loader; never how fast."""

from __future__ import annotations

import json
import os
import threading
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.__main__ import main
from bench.accelerator import Timings, emulate, hold
from bench.accelerator_ranks import Feeding
from bench.accelerator_report import verdict
from shard.dataset import Dataset
from tests.bench.made_up_loader import BATCH, Clock, steady


def command(dataset: Dataset, *more: str) -> list[str]:
    small = ["--size", "16", "--batch-size", "8", "--repeats", "1", "--seconds", "0.02", "--threads", "1"]
    return ["accelerator", "--data", str(dataset.root), *small, *more]


def test_the_command(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "record.json"
    flags = ["--accelerators", "2", "--step-ms", "20", "--no-search", "--out", str(file)]
    assert main(command(dataset, *flags)) == 0
    out = capsys.readouterr().out
    assert "20.0 ms per batch of 8 = 400 images/s each" in out
    record = json.loads(file.read_text())
    assert record["accelerator"]["source"] == "--step-ms 20"
    (point,) = record["points"]
    assert point["accelerators"] == 2
    assert point["demand"] == 800
    assert 0 < point["au"][0] <= 1
    assert point["images_per_s"][0] <= 801  # never more than they ask for, however fast the loader
    assert point["passed"] == (point["au"][0] >= 0.9)
    assert record["check"] == []
    assert "AU" in verdict(record)


class FakeRanks:
    """Emulated accelerators on a made-up clock, with a loader of 600 images/s."""

    def __init__(self, feeding: Feeding, number: int) -> None:
        self.clock, self.depth = Clock(), feeding.prefetch
        self.batches = steady(self.clock, 600.0, self.depth)

    def run(self, step_s: float, seconds: float, held: float | None = None) -> list[Timings]:
        source = self.batches
        if held is not None:
            source = hold(self.batches, held, self.depth, self.clock, self.clock.sleep)
        return [
            emulate(
                source, step_s * BATCH / 32, drain=self.depth + 1,
                meet=lambda step, ready, elapsed_s: (ready, step < 200), clock=self.clock, sleep=self.clock.sleep,
            )
        ]  # fmt: skip

    def __enter__(self) -> FakeRanks:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.parametrize("flags", [[], ["--hold", "100"]])
def test_the_check_at_five_demands(
    dataset: Dataset,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flags: list[str],
) -> None:
    monkeypatch.setattr("bench.accelerator_run.Ranks", FakeRanks)
    file = tmp_path / "record.json"
    ratios = ["--check", "0.5,0.8,1,1.25,2", "--batch-size", "64", "--repeats", "2", "--out", str(file)]
    assert main(command(dataset, "--images-per-s", "50", "--no-search", *ratios, *flags)) == 0
    assert "The emulation against min(1, X ÷ demand)" in capsys.readouterr().out
    checks = json.loads(file.read_text())["check"]
    assert [one["demand_over_loader"] for one in checks] == [0.5, 0.8, 1, 1.25, 2]
    given = 100 if flags else 600
    for one in checks:
        assert one["au"] == pytest.approx(min(1, 1 / one["demand_over_loader"]), abs=0.03)
        assert abs(one["difference_points"]["value"]) < 3
        assert [repeat["demand"] for repeat in one["repeats"]] == pytest.approx(
            [one["demand_over_loader"] * given] * 2, rel=0.01
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--like", "h100-resnet50", "--step-ms", "3"], "--like, --step-ms are given together"),
        (["--images-per-s", "0"], "--images-per-s is 0.0; it must be positive"),
        (["--check", "1,fast"], "--check has 'fast'; it takes positive numbers"),
        (["--hold", "100"], "--hold is given without --check"),
        (["--hold", "0", "--check", "1"], "--hold is 0.0; it must be positive"),
        (["--step-ms", "inf"], "--step-ms is inf; it must be positive"),
        (["--check", "1,inf"], "--check has 'inf'; it takes positive numbers"),
        (["--accelerators", "17"], "--accelerators is 17, more than --most 16"),
        (["--split", "test"], "has no split 'test'; it has train, val"),
        (["--seconds", "-1"], "--seconds is -1.0; it must be positive"),
    ],
)
def test_mistakes_end_in_one_line(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(command(dataset, *flags)) == 1
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if line.startswith("error: ")] == error[-1:]
    assert message in error[-1]


class Thread(threading.Thread):
    """In place of a process, which needs seconds to start."""

    exitcode = None

    def __init__(self, target: Any, args: tuple[Any, ...], daemon: bool) -> None:
        pipe, *rest = args  # a process has a copy of its own, which the parent does not close
        super().__init__(target=target, args=(Connection(os.dup(pipe.fileno())), *rest), daemon=daemon)

    def terminate(self) -> None:
        """The pipe is closed next, which ends it."""

    kill = terminate


def test_a_loader_that_fails_is_named(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = SimpleNamespace(
        Barrier=threading.Barrier, Value=lambda kind, value: SimpleNamespace(value=value),
        Array=lambda kind, size, lock: [0.0] * size, Pipe=Pipe, Process=Thread,
    )  # fmt: skip
    monkeypatch.setattr("bench.accelerator_ranks.multiprocessing.get_context", lambda kind: threads)
    monkeypatch.setattr("bench.accelerator_ranks.signal.signal", lambda number, handler: None)
    root = tmp_path / "damaged"
    root.mkdir()
    for path in dataset.root.rglob("*"):
        target = root / path.relative_to(dataset.root)
        target.mkdir(parents=True, exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    for shard in (root / "train").glob("*.tar"):
        shard.unlink()
    damaged = Dataset.open(root)
    assert main(command(damaged, "--accelerators", "2", "--images-per-s", "50", "--no-search")) == 1
    assert "shard-00000" in capsys.readouterr().err.splitlines()[-1]
