"""What was not measured is labelled, and the command works with two processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import HashStore

from bench.__main__ import main
from bench.accelerator import PRESETS
from bench.scaling import ranks
from bench.scaling.law import Law
from bench.scaling.network import Network
from bench.scaling.plan import Plan
from bench.scaling.record import make_record
from bench.scaling.report import picture, table
from bench.scaling.run import _last_words
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.config import Config
from train.inputs import InputConfig
from train.model import ModelConfig


def make_plan(**values: object) -> Plan:
    config = Config(
        data="nowhere", input=InputConfig(batch_size=32, size=64), model=ModelConfig(arch="resnet18")
    )
    plan = Plan(
        config=config, over="processes", counts=(1, 2, 4), strong=False, to=16, like=None,
        network=Network(1e-5, 2e-11), repeats=3, seconds=1.0,
    )  # fmt: skip
    return replace(plan, **values)  # type: ignore[arg-type]


def measured(counts: tuple[int, ...], law: Law) -> dict[str, object]:
    reduces = [{"ranks": 2, "size_bytes": 2**k, "seconds": 1e-4 + 2**k * 1e-9} for k in (12, 18, 24)]
    return {
        "images_per_s": {str(n): [100 * law.speedup(n) * x for x in (0.9, 1, 1.1)] for n in counts},
        "gradient_bytes": 46_000_000,
        "all_reduces": reduces if max(counts) > 1 else [],
        "backend": "gloo",
        "local_size": max(counts),
    }


def test_a_record_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    plan = make_plan(like=("h100-resnet50", PRESETS["h100-resnet50"]))
    record = json.loads(json.dumps(make_record(plan, measured((1, 2, 4), Law(0.1, 0.01)), "hot")))
    assert [p["kind"] for p in record["points"]] == ["measured"] * 3
    assert [(p["kind"], p["count"]) for p in record["extrapolated"]] == [
        ("extrapolated", 8),
        ("extrapolated", 16),
    ]
    assert record["law"]["determined"]
    assert record["law"]["sigma"] == pytest.approx(0.1, abs=1e-4)
    assert record["extrapolated"][0]["value"] == pytest.approx(Law(0.1, 0.01).speedup(8), rel=1e-3)
    here, assumed = record["simulated"]
    assert (here["kind"], assumed["kind"]) == ("simulated", "simulated")
    assert [p["count"] for p in here["points"]] == [2, 4, 8, 16]
    assert assumed["step_s"] == 0.224
    assert assumed["points"][-1]["images_per_s_high"] == pytest.approx(16 * 1785.7, rel=1e-3)
    text = table(record)
    assert text.count("SIMULATED, not measured: ") == 2
    assert "sigma 0.1000 (contention), kappa 0.01000 (coherence)" in text
    assert all(word in text for word in ("ac0424f", "50 GB/s", "10 µs", "loaders keep up"))
    picture(record, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_two_points_are_not_sold_as_a_fit(tmp_path: Path) -> None:
    record = json.loads(
        json.dumps(make_record(make_plan(counts=(1, 2), to=8), measured((1, 2), Law(0.1, 0.0)), "hot"))
    )
    assert not record["law"]["determined"]
    assert [p["value"] for p in record["extrapolated"]] == [None, None]
    text = table(record)
    assert "cannot determine the two parameters" in text
    assert "pessimistic" in text
    assert "optimistic" in text
    picture(record, tmp_path / "scaling.png")


def test_one_point_is_only_a_point(tmp_path: Path) -> None:
    record = json.loads(json.dumps(make_record(make_plan(counts=(1,)), measured((1,), Law(0, 0)), "hot")))
    assert record["law"] is None
    assert record["extrapolated"] == record["simulated"] == []
    assert "nothing to fit" in table(record)
    picture(record, tmp_path / "scaling.png")


def command(dataset: Dataset, out: Path, *more: str) -> list[str]:
    small = [
        "--model",
        "cifar_resnet9",
        "--size",
        "32",
        "--batch-size",
        "8",
        "--repeats",
        "1",
        "--seconds",
        "0.05",
    ]
    return ["scaling", "--data", str(dataset.root), *small, "--out", str(out), *more]


def test_threads(dataset: Dataset, tmp_path: Path) -> None:
    assert main(command(dataset, tmp_path, "--over", "threads")) == 0
    record = json.loads((tmp_path / "scaling.json").read_text())
    assert [p["count"] for p in record["points"]] == [1, 2]
    assert record["settings"]["work"] == "loader alone"
    assert record["simulated"] == []
    assert (tmp_path / "scaling.png").exists()


def test_processes(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(dataset, tmp_path, "--over", "processes", "--strong")) == 0
    assert "SIMULATED" in capsys.readouterr().out
    record = json.loads((tmp_path / "scaling.json").read_text())
    assert [len(p["images_per_s"]) for p in record["points"]] == [1, 1]
    assert record["settings"]["mode"] == "strong"
    assert record["network"]["backend"] == "gloo"
    assert {p["ranks"] for p in record["all_reduces"]} == {2}
    assert record["simulated"][0]["gradient_bytes"] > 1e6


@pytest.mark.gpu
def test_gpus(dataset: Dataset, tmp_path: Path) -> None:
    assert main(command(dataset, tmp_path, "--over", "gpus", "--counts", "1")) == 0
    record = json.loads((tmp_path / "scaling.json").read_text())
    assert record["environment"]["gpu"]["name"]
    assert record["points"][0]["images_per_s"][0] > 0


def test_what_a_rank_says_is_the_error(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that fails here, in place of the processes that torchrun would start."""

    @contextmanager
    def rank(words: list[str], **_: object) -> Iterator[SimpleNamespace]:
        with pytest.raises(FeedlineError):
            ranks.main(words[-2:])
        yield SimpleNamespace(stdout=["scaling: repeat 1\n", "a traceback\n"], returncode=1)

    monkeypatch.setattr("bench.scaling.run.running", rank)
    monkeypatch.setattr(ranks, "end_with_parent", lambda: None)
    monkeypatch.setattr(ranks.Ranks, "join", lambda: ranks.Ranks(0, 1, 0, 1, HashStore()))
    flags = ["--over", "processes", "--counts", "1", "--model", "resnet5000"]
    threads = torch.get_num_threads()
    try:
        assert main(command(dataset, tmp_path / "out", *flags)) == 1
    finally:
        torch.set_num_threads(threads)
    *_, progress, error = capsys.readouterr().err.splitlines()
    assert progress == "repeat 1"
    assert "failed: arch is 'resnet5000'" in error


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["starting", "RuntimeError: no memory", "ChildFailedError: rank 1"], "RuntimeError: no memory"),
        (["[rank1]:     raise ValueError(", "[rank1]: ValueError: no"], "ValueError: no"),
        (
            ["[rank0]: torch.OutOfMemoryError: CUDA out of memory", "x"],
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        (["", "only this"], "only this"),
        ([], "it said nothing"),
    ],
)
def test_the_last_words_of_torchrun(lines: list[str], said: str) -> None:
    assert _last_words(lines) == said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--over", "processes", "--counts", "2,4"],
            "--counts is '2,4'; it takes whole numbers with 1 among them",
        ),
        (["--over", "processes", "--counts", "1,x"], "--counts is '1,x'"),
        (["--over", "processes", "--counts", "1,5000"], "--counts has 5000, but this machine has"),
        (["--over", "gpus", "--counts", "1,5000"], "--counts has 5000, but this machine has"),
        (["--over", "processes", "--counts", "1,3", "--strong"], "--batch-size 8 does not divide into 3"),
        (["--over", "nodes"], "--over nodes needs torchrun on every node"),
        (["--over", "threads", "--gb-per-s", "0"], "--gb-per-s is 0.0; it must be positive"),
        (["--over", "processes", "--split", "test"], "has no split 'test'; it has train, val"),
    ],
)
def test_mistakes_end_in_one_line(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(command(dataset, tmp_path / "out", *flags)) == 1
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if line.startswith("error: ")] == error[-1:]
    assert message in error[-1]
    assert not (tmp_path / "out").exists()
