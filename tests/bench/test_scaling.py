"""Laws that are known are found again, what was not measured is labelled, and the command works with two processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore

from bench.__main__ import main
from bench.accelerator import PRESETS
from bench.scaling import ranks
from bench.scaling.law import Law, extrapolate, extremes, fit, speedups
from bench.scaling.network import Measured, Network, Scenario, fit_network, simulate, worst_error
from bench.scaling.plan import Plan
from bench.scaling.record import make_record
from bench.scaling.report import picture, table
from bench.scaling.run import _last_words
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.config import Config
from train.inputs import InputConfig
from train.model import ModelConfig

COUNTS = (1, 2, 4, 8)
parameters = st.floats(0, 0.5)


@settings(max_examples=30)
@given(parameters, st.floats(0, 0.05))
def test_a_law_is_found_again(sigma: float, kappa: float) -> None:
    law = Law(sigma, kappa)
    found = fit({n: law.speedup(n) for n in COUNTS})
    assert found.sigma == pytest.approx(sigma, abs=1e-5)
    assert found.kappa == pytest.approx(kappa, abs=1e-5)


@settings(max_examples=30)
@given(st.lists(st.floats(0.5, 20), min_size=3, max_size=3))
def test_parameters_are_never_negative(gains: list[float]) -> None:
    found = fit({1: 1.0, **dict(zip(COUNTS[1:], gains, strict=True))})
    assert found.sigma >= 0
    assert found.kappa >= 0


def test_known_laws() -> None:
    assert Law(0, 0).speedup(64) == 64
    assert Law(0.25, 0).speedup(10**9) == pytest.approx(4)  # Amdahl: one over the serial share
    assert Law(0.19, 0.0001).peak == 90
    assert Law(0.1, 0).peak == float("inf")


def test_two_counts_leave_it_open() -> None:
    with pytest.raises(ValueError, match="two parameters"):
        fit({1: 1.0, 2: 1.8})
    low, high = extremes({1: 1.0, 2: 1.8})
    assert low.speedup(2) == pytest.approx(1.8)
    assert high.speedup(2) == pytest.approx(1.8)
    assert (low.sigma, high.kappa) == (0, 0)
    (ahead,) = extrapolate({1: [10, 20, 30], 2: [18, 36, 54]}, [8])
    assert ahead.value is None
    assert ahead.low == pytest.approx(low.speedup(8))
    assert ahead.high == pytest.approx(high.speedup(8))
    assert ahead.confidence == 0.75  # of three repeats


@pytest.mark.parametrize(("repeats", "confidence"), [(1, 0.0), (5, 0.9375), (9, 0.95)])
def test_few_repeats_are_not_sold_as_sure(repeats: int, confidence: float) -> None:
    (ahead,) = extrapolate({n: [100.0 * n] * repeats for n in (1, 2, 4)}, [8])
    assert ahead.confidence == confidence


@settings(max_examples=30)
@given(st.floats(0, 0.3), st.floats(0, 0.02))
def test_every_law_through_the_point_lies_between_the_extremes(sigma: float, kappa: float) -> None:
    law = Law(sigma, kappa)
    low, high = extremes({1: 1.0, 2: law.speedup(2)})
    assert low.speedup(8) <= law.speedup(8) * (1 + 1e-9)
    assert law.speedup(8) <= high.speedup(8) * (1 + 1e-9)


def test_a_speedup_above_the_ideal_counts_as_ideal() -> None:
    assert extremes({1: 1.0, 2: 2.2}) == (Law(0.0, 0.0), Law(0.0, 0.0))


def test_speedups_are_taken_within_repeats() -> None:
    # The machine is half as fast in the second repeat, for both.
    assert speedups({1: [100, 50, 100], 2: [180, 90, 200]}) == {1: 1, 2: 1.8}


def test_the_interval_of_an_extrapolation_covers_the_truth() -> None:
    law, draw, hits = Law(0.05, 0.002), np.random.default_rng(0), 0
    for _ in range(10):
        rates = {n: (100 * law.speedup(n) * draw.normal(1, 0.02, 7)).tolist() for n in (1, 2, 4)}
        (ahead,) = extrapolate(rates, [8])
        assert ahead.value is not None
        assert ahead.low <= ahead.high
        hits += ahead.low <= law.speedup(8) <= ahead.high
    assert hits >= 8


@settings(max_examples=30)
@given(st.floats(1e-6, 1e-3), st.floats(1e-11, 1e-8))
def test_a_network_is_found_again(alpha_s: float, beta_s: float) -> None:
    network = Network(alpha_s, beta_s)
    points = [Measured(n, 2**k, network.all_reduce(n, 2**k)) for n in (2, 4) for k in range(10, 28, 4)]
    found = fit_network(points)
    assert found.alpha_s == pytest.approx(alpha_s, rel=1e-6)
    assert found.beta_s == pytest.approx(beta_s, rel=1e-6)
    assert worst_error(found, points) < 1e-6


def test_one_size_tells_nothing() -> None:
    with pytest.raises(ValueError, match="one size"):
        fit_network([Measured(2, 1024, 0.1), Measured(2, 1024, 0.2)])


def scenario(*, strong: bool = False, gb_per_s: float = 1.0) -> Scenario:
    return Scenario(
        name="", step_s=0.3, batch_size=100, gradient_bytes=100_000_000, network=Network(0, 1e-9 / gb_per_s),
        strong=strong,
    )  # fmt: skip


def test_simulated_steps() -> None:
    # Ring of 4: 2 · 3/4 · 0.1 s = 0.15 s, which fits into the backward pass of 0.2 s.
    four = simulate(scenario(), 4)
    assert four.all_reduce_s == pytest.approx(0.15)
    assert four.low == pytest.approx(4 * 0.3 / 0.45)
    assert four.high == pytest.approx(4)
    # Strong: each computes for 0.075 s, of which 0.05 s hide a part.
    strong = simulate(scenario(strong=True), 4)
    assert strong.low == pytest.approx(0.3 / (0.075 + 0.15))
    assert strong.high == pytest.approx(0.3 / (0.025 + 0.15))
    assert simulate(scenario(gb_per_s=1e9), 4).low == pytest.approx(4)
    # Two nodes of 4: from 2 · 3/4 to 2 · 7/8 of 0.1 s.
    assert simulate(replace(scenario(), unit=4), 2).all_reduce_s == pytest.approx(0.025)
    assert simulate(replace(scenario(), unit=4), 1).low == 1


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
