"""Orders of the real readers on a dataset that is sorted by class."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.__main__ import main
from bench.shuffle import Plan, quality, shuffle, table
from shard.errors import FeedlineError

PLAN = Plan(samples=3000, shards=60, classes=30, buffer=100, batch_size=100)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    record = shuffle(PLAN, tmp_path_factory.mktemp("shuffle"))
    assert all(f"| {row['reader']} |" in table(record) for row in record["rows"])
    return {row["reader"]: row for row in record["rows"]}


def test_figures_of_orders_that_are_known() -> None:
    n = 10_000
    shard, label = np.arange(n, dtype=np.int32) // 100, np.arange(n) // 50
    straight = quality(np.arange(n), shard, label, 100)
    assert straight["displacement"] == 0
    assert straight["correlation"] == pytest.approx(1)
    assert straight["kept_neighbours"] == 1
    assert straight["label_run"] == 50
    assert straight["same_shard"] == 1
    assert straight["batch_classes"] == 2
    backwards = quality(np.arange(n)[::-1], shard, label, 100)
    assert backwards["displacement"] == pytest.approx(1 / 2, abs=1e-3)
    assert backwards["correlation"] == pytest.approx(-1)
    assert backwards["kept_neighbours"] == 1
    mixed = quality(np.random.default_rng(0).permutation(n), shard, label, 100)
    assert mixed["displacement"] == pytest.approx(1 / 3, abs=0.01)
    assert abs(mixed["correlation"]) < 0.05
    assert mixed["kept_neighbours"] < 0.001
    assert mixed["label_run"] == pytest.approx(1, abs=0.01)
    assert mixed["same_shard"] == pytest.approx(99 / 9999, rel=0.1)
    assert mixed["batch_classes"] == pytest.approx(200 * (1 - (1 - 1 / 200) ** 100), rel=0.02)


def test_sequential_is_not_shuffled_and_global_is_random(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["sequential"]["displacement"] == 0
    assert rows["sequential"]["label_run"] == 100
    mixed = rows["feedline, global"]
    assert mixed["displacement"] == pytest.approx(1 / 3, abs=0.02)
    assert abs(mixed["correlation"]) < 0.06
    assert mixed["kept_neighbours"] < 0.003
    assert mixed["label_run"] < 1.06
    assert mixed["same_shard"] == pytest.approx(49 / 2999, rel=0.15)


def test_windows_lie_between(rows: dict[str, dict[str, Any]]) -> None:
    """More lanes and wider windows mix better; all but the narrowest better than buffers."""
    order = [
        "sequential",
        *(f"feedline, {name}" for name in ("1 lane(s) of 4 shard(s)", "8 lane(s) of 1 shard(s)")),
    ]
    order.append("feedline, 8 lane(s) of 4 shard(s)")
    same = [rows[name]["same_shard"] for name in order]
    assert same == sorted(same, reverse=True)
    assert same[-1] > 1.5 * rows["feedline, global"]["same_shard"]
    for name in order[1:]:
        assert rows[name]["displacement"] > 0.25
    dali, webdataset = rows["DALI, buffer of 100"], rows["webdataset, buffer of 100, shards shuffled"]
    assert dali["displacement"] < 0.1  # it stays near its place
    for buffered in (dali, webdataset):
        assert buffered["same_shard"] > 2 * same[-1]


def test_the_command_prints_and_writes_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    small = "--samples 200 --shards 10 --classes 5 --buffer 20 --batch-size 20"
    assert main(["shuffle", *small.split(), "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert len(printed["rows"]) == 8
    assert printed["settings"]["buffer"] == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": 300}, "--shards is 300; it must lie in 1 … 100"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"buffer": 0}, "--buffer is 0; it must be at least 1"),
        ({"seed": -1}, "--seed is -1; it must be at least 0"),
    ],
)
def test_plans_that_cannot_be(change: dict[str, int], message: str) -> None:
    with pytest.raises(FeedlineError, match=message):
        Plan(**{"samples": 200, "batch_size": 20} | change)
