"""The comparing logic, from made-up figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.guard.baseline import Baseline, load, machine_class, save
from bench.guard.compare import Change, compare, findings
from bench.guard.contest import Measured, summarise
from bench.guard.report import table, verdict, verdict_record
from bench.guard.session import confirmed
from shard.errors import FeedlineError

UPSTREAM = {
    "read": (),
    "decode": (),
    "transform": ("decode",),
    "loader": ("read", "decode", "transform"),
    "step": (),
    "real": ("read", "decode", "transform", "loader", "step"),
}
PARALLEL = ("loader", "real")


def ratios(noise: float = 0.01, seed: int = 0, repeats: int = 16, **factors: float) -> Measured:
    """Ratios around 1 with this noise; `step_time=1.2` makes one of them 20 % greater."""
    random = np.random.default_rng(seed)

    def draw(name: str) -> list[float]:
        centre = factors.get(name, 1.0)
        return [float(value) for value in centre * random.lognormal(0, noise, repeats)]

    return summarise(
        {
            stage: {
                signal: draw(f"{stage}_{signal}")
                for signal in ("cpu", "time", "threads" if stage in PARALLEL else "wait")
            }
            for stage in UPSTREAM
        }
    )


def baseline(noise: float = 0.01, margin: float = 0.08) -> Baseline:
    """Five runs with this noise between them."""
    runs = [
        {
            stage: {name: one.value for name, one in found.items()}
            for stage, found in ratios(noise, seed).items()
        }
        for seed in range(100, 105)
    ]
    return Baseline(name="made up", margin=margin, settings={"model": "m"}, runs=runs, environment={})


def found(measured: Measured, known: Baseline | None = None) -> list[tuple[str, str, list[str]]]:
    changes = compare(measured, known or baseline())
    return [(one.stage, one.suspect.split(":")[0], one.followers) for one in findings(changes, UPSTREAM)]


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({}, []),
        # A sleep in the reader: no CPU time; the loader waits for it, and training for the loader.
        (
            {"read_time": 3, "loader_time": 1.6, "real_time": 1.4},
            [("read", "waiting, more than CPU time explains", ["loader", "real"])],
        ),
        (
            {"loader_time": 1.9, "loader_threads": 0.52, "real_time": 1.3},
            [("loader", "fewer threads at work", ["real"])],
        ),
        (
            {"transform_cpu": 1.2, "transform_time": 1.2, "loader_cpu": 1.12, "loader_time": 1.13},
            [("transform", "more work per image", ["loader"])],
        ),
        ({"step_time": 1.25, "real_time": 1.2}, [("step", "waiting, more than CPU time explains", ["real"])]),
        ({"step_cpu": 1.25, "step_time": 1.25}, [("step", "more work per image", [])]),
        # Two at once are both told.
        (
            {"decode_cpu": 1.3, "decode_time": 1.3, "step_time": 1.3},
            [("decode", "more work per image", []), ("step", "waiting, more than CPU time explains", [])],
        ),
        # A short sleep under noise: CPU time and time wander together, their ratio does not.
        ({"step_wait": 1.12}, [("step", "waiting, more than CPU time explains", [])]),
        ({"real_time": 1.3}, [("real", "waiting, more than CPU time explains", [])]),
        # Faster is no regression, nor is a change within the margin.
        ({"decode_cpu": 0.7, "decode_time": 0.7, "loader_threads": 1.5}, []),
        ({"decode_cpu": 1.04, "decode_time": 1.04}, []),
    ],
)
def test_the_first_stage_that_is_slower_by_itself_is_named(
    factors: dict[str, float], expected: list[tuple[str, str, list[str]]]
) -> None:
    assert found(ratios(**factors)) == expected


def test_noise_is_no_regression() -> None:
    for seed in range(200):
        assert found(ratios(0.05, seed), baseline(0.03)) == []


def test_a_noisy_run_gives_no_alarm_but_says_that_it_cannot_tell() -> None:
    changes = compare(ratios(0.4, repeats=8, step_time=1.3), baseline())
    assert findings(changes, UPSTREAM) == []
    text = verdict(changes, [], baseline())
    assert "no regression" in text
    assert "too noisy to tell" in text
    assert "step (time per image)" in text


def test_a_ratio_that_differs_between_the_baselines_runs_needs_a_greater_change() -> None:
    assert found(ratios(decode_cpu=1.2), baseline(0.01)) != []
    assert found(ratios(decode_cpu=1.2), baseline(0.3)) == []


def test_too_few_repeats_say_nothing() -> None:
    changes = compare(ratios(repeats=3, decode_cpu=5), baseline())
    assert not any(change.regressed or change.decided for change in changes)


def test_a_regression_must_be_seen_twice() -> None:
    first = compare(ratios(decode_cpu=1.5, step_cpu=1.5), baseline())
    again = compare(ratios(seed=1, step_cpu=1.5), baseline())
    assert [one.stage for one in findings(confirmed(first, again), UPSTREAM)] == ["step"]


def test_the_second_look_at_a_stage_tells_its_suspect_and_what_is_decided() -> None:
    first = compare(ratios(0.3, repeats=8, step_time=4), baseline())
    assert [(c.signal, c.regressed, c.decided) for c in first if c.stage == "step"] == [
        ("cpu", False, False), ("time", True, True), ("wait", False, False),
    ]  # fmt: skip
    again = [c for c in compare(ratios(seed=1, step_cpu=2, step_time=2), baseline()) if c.stage == "step"]
    (found,) = findings(confirmed(first, again), UPSTREAM)
    assert found.suspect.startswith("more work per image")
    again = [c for c in compare(ratios(seed=1), baseline()) if c.stage == "step"]
    changes = confirmed(first, again)
    assert findings(changes, UPSTREAM) == []
    assert all(change.decided for change in changes if change.stage == "step")
    again = [c for c in compare(ratios(seed=1, step_cpu=2), baseline()) if c.stage == "step"]
    assert any(change.regressed for change in again)
    assert findings(confirmed(first, again), UPSTREAM) == []  # another signal than in the first look


def test_the_report_names_stage_change_and_suspect() -> None:
    measured = ratios(read_time=2.0, loader_time=1.5)
    changes = compare(measured, baseline())
    text = verdict(changes, findings(changes, UPSTREAM), baseline())
    assert text.startswith("REGRESSION in read: time per image +")
    assert "Suspect: waiting, more than CPU time explains: a sleep, a lock, or storage" in text
    assert text.endswith("Slower because of it: loader.")
    (record,) = verdict_record(findings(changes, UPSTREAM))
    assert (
        record["changes"]["time"]["low"] < record["changes"]["time"]["percent"] == pytest.approx(100, abs=5)
    )
    lines = table(measured, changes).splitlines()
    assert [line.split(",")[0] for line in lines if line.endswith("<<")] == ["read", "loader"]


def test_percent_has_the_least_and_the_greatest_change() -> None:
    (change,) = [
        c for c in compare(ratios(decode_cpu=1.5), baseline()) if (c.stage, c.signal) == ("decode", "cpu")
    ]
    assert isinstance(change, Change)
    value, low, high = change.percent
    assert 40 < low < value < high < 60


def test_baselines_of_several_classes_live_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "ci" / "guard.json"
    one, two = baseline(), baseline(0.05, 0.5)
    save(file, one)
    save(file, Baseline(name="other", margin=0.5, settings={}, runs=two.runs, environment={}))
    assert load(file, "made up") == one
    assert load(file, "other").margin == 0.5
    with pytest.raises(FeedlineError, match=r"no baseline for class 'third'.*'made up', 'other'.*; take one"):
        load(file, "third")


def test_a_file_that_is_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(
        FeedlineError, match=r"there is no baseline .*; take one on this machine with --update"
    ):
        load(tmp_path / "guard.json", "any")
    (tmp_path / "guard.json").write_text("{")
    with pytest.raises(FeedlineError, match=r"guard.json is no baseline: "):
        load(tmp_path / "guard.json", "any")
    (tmp_path / "guard.json").write_text('{"format": 7}')
    with pytest.raises(FeedlineError, match="is no baseline of format 2"):
        load(tmp_path / "guard.json", "any")


def test_another_workload_is_not_compared() -> None:
    known = Baseline(
        name="n", margin=0.1, settings={"model": "a", "bytes_per_image": 1000}, runs=[], environment={}
    )
    known.require_same({"model": "a", "bytes_per_image": 1080}, Path("f"))
    with pytest.raises(FeedlineError, match="taken with model 'a' for class 'n', this run has 'b'"):
        known.require_same({"model": "b", "bytes_per_image": 1000}, Path("f"))
    with pytest.raises(FeedlineError, match=r"bytes_per_image 1000 .*this run has 1200"):
        known.require_same({"model": "a", "bytes_per_image": 1200}, Path("f"))


def test_a_machine_is_known_by_its_processors() -> None:
    where = {"cpu": "A", "cores": 2, "gpu": None}
    assert machine_class(where) == "A, 2 cores"
    assert machine_class(where | {"gpu": {"name": "H100"}}) == "A, 2 cores, H100"
