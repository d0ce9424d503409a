"""`python -m train compare` of runs of multi-label datasets: figures, and tests of mAP with known results."""

from __future__ import annotations

import csv
import io
import json
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import bootstrap, rankdata
from sklearn.metrics import average_precision_score

from shard.errors import FeedlineError
from tests.train.runs import make_run
from train import checkpoint
from train.__main__ import main
from train.assess.files import write_parquet
from train.commands.compare import compare
from train.compare import multi_label
from train.compare.multi_label import (
    Answers,
    compare_maps,
    paired_interval,
    permutation_p,
    resampled,
    resamples_of,
)
from train.compare.tables import verdict
from train.compare.weighted_map import Bools, Floats, WeightedMap
from train.multi_label import average_precisions

CLASSES = ("ant", "bee", "cat")
N = 60


def drawn(samples: int, noise: float, seed: int = 0, classes: int = len(CLASSES)) -> tuple[Bools, Floats]:
    """Targets, which are the same for every noise, and probabilities that tell them the better the less noise."""
    targets = np.random.default_rng(7).random((samples, classes)) < 0.4
    logits = targets + noise * np.random.default_rng(seed).normal(size=targets.shape)
    return targets, (1 / (1 + np.exp(-logits))).astype(np.float32)


def answers(targets: Bools, probabilities: Floats) -> Answers:
    classes = tuple(f"class{i}" for i in range(targets.shape[1]))
    return Answers(ids=np.arange(len(targets)), classes=classes, targets=targets, probabilities=probabilities)


def a_run(root: Path, *, score: float, evaluated: bool = True, **content: object) -> Path:
    """A finished run of a multi-label dataset."""
    make_run(root, "test_efficientnet", CLASSES, 24, data=Path("/data/insects"))
    best = root / "checkpoints" / "best.pt"
    last_eval = {"map": score - 9, "ema_map": score, "loss": 0.7, "ema_loss": 0.5} if evaluated else {}
    found = checkpoint.load(best) | {"multi_label": True, "fingerprint": "insects", "last_eval": last_eval}
    del found["format"]
    checkpoint.save(best, found | content)
    summary = {"wall_s": score, "epochs": 4, "ranks": 1, "device": "cpu", "ended": "", "synthetic": False}
    (root / "summary.json").write_text(json.dumps(summary))
    return root


def judge(root: Path, targets: Bools, probabilities: Floats, classes: tuple[str, ...] = CLASSES) -> None:
    """What `python -m train eval` leaves."""
    folder = root / "eval" / "insects-val-best"
    folder.mkdir(parents=True)
    names = [[classes[i] for i in np.flatnonzero(row)] for row in targets]
    table = {
        "id": np.arange(len(targets)),
        "classes": pa.array(names, pa.list_(pa.string())),
        "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(probabilities.ravel()), len(classes)),
    }
    write_parquet(pa.table(table), folder / "predictions.parquet")
    about = {
        "fingerprint": "insects", "split": "val", "averaged": True, "data": "/data/insects", "epoch": 3,
        "flip_tta": False, "checkpoint": str(root / "checkpoints" / "best.pt"), "loss": 0.25,
        "map": 100 * float(average_precisions(targets, probabilities).mean()),
        "classes": {name: {} for name in classes},
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(about))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi_label, "_MOST", 1_000)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs, the second one better, and slower."""
    root = tmp_path_factory.mktemp("runs")
    found = [a_run(root / "a", score=50.0), a_run(root / "b", score=60.0)]
    judge(found[0], *drawn(N, noise=2.0, seed=1))
    judge(found[1], *drawn(N, noise=0.4, seed=2))
    return found


level = st.integers(0, 3)
rows = st.tuples(st.booleans(), st.booleans(), level, level, level, level)


@settings(max_examples=60)
@given(st.lists(rows, min_size=1, max_size=40))
def test_a_weight_is_how_often_a_sample_counts(found: list[tuple[bool, bool, int, int, int, int]]) -> None:
    table = np.array(found, np.int64)
    targets, scores, weights = table[:, :2].astype(np.bool_), table[:, 2:4].astype(np.float64), table[:, 4:]
    weights[0] += 1  # one sample is there
    repeated = [np.repeat(np.arange(len(table)), column) for column in weights.T]
    assert WeightedMap(targets, scores)(weights.astype(np.float32)) == pytest.approx(
        [100 * average_precisions(targets[again], scores[again]).mean() for again in repeated], abs=1e-11
    )


@settings(max_examples=60)
@given(st.lists(rows, min_size=1, max_size=40))
def test_halves_are_those_taken_and_those_left(found: list[tuple[bool, bool, int, int, int, int]]) -> None:
    table = np.array(found, np.int64)
    of = WeightedMap(table[:, :2].astype(np.bool_), table[:, 2:4].astype(np.float64))
    taken = (table[:, 4:] > 1).astype(np.float32)
    for half, weights in zip(of.halves(taken), (taken, 1 - taken), strict=True):
        assert half == pytest.approx(of(weights), abs=1e-11)


def test_resamples_come_in_batches_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, a = drawn(N, noise=0.7, seed=1)
    _, b = drawn(N, noise=0.9, seed=2)
    of = WeightedMap(targets, a)
    at_once, p = resampled(of, N, 100), permutation_p(targets, a, b, 100)
    monkeypatch.setattr(multi_label, "_BATCH", 7 * N)
    np.testing.assert_allclose(resampled(of, N, 100), at_once, rtol=0, atol=1e-11)
    assert permutation_p(targets, a, b, 100) == p
    assert 0.01 < p < 1


def test_p_is_the_share_of_all_permutations_that_differ_as_much() -> None:
    targets = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, 0], [0, 1]], np.bool_)
    a = np.array([[0.9, 0.2], [0.8, 0.6], [0.1, 0.9], [0.3, 0.4], [0.7, 0.1], [0.2, 0.8]])
    b = np.array([[0.6, 0.2], [0.3, 0.9], [0.4, 0.1], [0.5, 0.7], [0.7, 0.8], [0.1, 0.6]])
    ranks_a, ranks_b = rankdata(a, axis=0), rankdata(b, axis=0)

    def difference(swapped: tuple[bool, ...]) -> float:
        of = np.array(swapped)[:, None]
        one, other = (
            average_precision_score(targets, np.where(mask, ranks_b, ranks_a)) for mask in (of, ~of)
        )
        return abs(float(one - other))

    every = [difference(swapped) for swapped in product((False, True), repeat=6)]
    exact = np.mean(np.array(every) >= every[0] - 1e-9)
    assert 0.02 < exact < 0.5
    assert permutation_p(targets, a, b, 10_000) == pytest.approx(exact, abs=0.02)  # four standard errors


def test_the_interval_is_that_of_scipys_paired_bootstrap() -> None:
    targets, a = drawn(N, noise=0.7, seed=1)
    _, b = drawn(N, noise=1.5, seed=2)

    def difference(rows: np.ndarray) -> float:
        one, other = (average_precisions(targets[rows], scores[rows]).mean() for scores in (a, b))
        return float(100 * (one - other))

    theirs = bootstrap(
        (np.arange(N),), difference, method="percentile", n_resamples=2000, rng=np.random.default_rng(1),
        vectorized=False,
    ).confidence_interval  # fmt: skip
    mine = paired_interval(*(resampled(WeightedMap(targets, scores), N, 2000) for scores in (a, b)))
    assert mine == pytest.approx((theirs.low, theirs.high), abs=1.5)


def test_a_network_that_is_surer_of_the_same_order_is_no_other_one() -> None:
    targets, a = drawn(N, noise=1.0)
    (pair,) = compare_maps({"a": answers(targets, a), "b": answers(targets, a**8)})
    assert (pair.p, pair.interval, pair.significant) == (1, (0, 0), False)
    assert verdict(pair) == "a and b: no significant difference (p = 1)"


def test_networks_that_differ_by_chance_do_not_differ_significantly() -> None:
    found = {f"seed {i}": answers(*drawn(N, noise=1.0, seed=i)) for i in range(3)}
    assert not any(pair.significant for pair in compare_maps(found))


def test_right_against_reversed() -> None:
    targets = np.arange(20)[:, None] % 2 == 0
    right = np.where(targets, 0.9, 0.1)
    (pair,) = compare_maps({"a": answers(targets, right), "b": answers(targets, 1 - right)})
    # b puts all that are not of the class first: the ten that are share the last threshold.
    assert (pair.map_a, pair.map_b, pair.samples) == (100, 50, 20)
    assert pair.p < 2e-3
    assert verdict(pair).startswith("a is better than b by 50.00 points")


def test_what_is_known_of_a_network_holds_on_the_same_samples_only() -> None:
    targets, a = drawn(N, noise=0.7, seed=1)
    _, b = drawn(N, noise=1.0, seed=2)
    _, c = drawn(N, noise=1.3, seed=3)
    found = {"a": answers(targets, a), "b": answers(targets, b)}
    fewer = Answers(
        ids=np.arange(N - 9), classes=found["a"].classes, targets=targets[:-9], probabilities=c[:-9]
    )
    every = compare_maps({**found, "c": fewer})
    for pair in every:
        (alone,) = compare_maps({name: {**found, "c": fewer}[name] for name in (pair.a, pair.b)})
        assert (pair.map_a, pair.map_b, pair.interval, pair.p) == (
            alone.map_a, alone.map_b, alone.interval, alone.p,
        )  # fmt: skip


def test_only_the_samples_that_both_have_are_compared() -> None:
    targets = np.array([[True], [False], [True]])
    one = Answers(
        ids=np.array([0, 1, 2]),
        classes=("x",),
        targets=targets,
        probabilities=np.array([[0.1], [0.2], [0.9]]),
    )
    other = Answers(
        ids=np.array([1, 2]), classes=("x",), targets=targets[1:], probabilities=np.array([[0.9], [0.1]])
    )
    (pair,) = compare_maps({"a": one, "b": other})
    assert (pair.samples, pair.map_a, pair.map_b) == (2, 100, 50)


@pytest.mark.parametrize("pairs", [1, 10, 45, 190])
def test_there_are_enough_resamples_to_find_any_difference_significant(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi_label, "_MOST", 10_000)
    for work in (100, 100_000, 100_000_000):
        assert pairs / (1 + resamples_of(work, pairs)) < 0.05
    assert resamples_of(100, 1) == 10_000 > resamples_of(100_000, 1) > resamples_of(100_000_000, 1)


def test_the_table_and_the_picture(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(path) for path in runs]
    assert main(["compare", *words, "--picture", str(tmp_path / "a.png")]) == 0
    out = capsys.readouterr().out
    assert out.split("\n")[0].split()[:6] == ["run", "status", "mAP", "%", "loss", "best"]
    assert "top-1" not in out
    assert "best mAP for its training time, minutes (Pareto front): a, b" in out
    assert "paired bootstrap and permutation test, 1,000 resamples each" in out
    assert "- b is better than a by" in out
    assert np.ptp(np.asarray(Image.open(tmp_path / "a.png"))) == 255
    assert main(["compare", *words, "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("| run | status | mAP % | loss |")


def test_what_programs_read(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(path) for path in runs]
    assert main(["compare", *words, "--format", "csv"]) == 0
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert not {"top1", "top5"} & set(first)
    assert 100 > float(second["map"]) > float(first["map"]) > 40  # of the shared evaluation
    assert main(["compare", *words, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["map"] for run in found["runs"]] == [float(first["map"]), float(second["map"])]
    (pair,) = found["pairs"]
    assert list(pair) == [
        "a", "b", "samples", "map_a", "map_b", "interval", "resamples", "p", "adjusted_p", "significant",
    ]  # fmt: skip
    assert [pair["map_a"], pair["map_b"]] == pytest.approx([run["map"] for run in found["runs"]])
    assert pair["interval"][0] < pair["map_a"] - pair["map_b"] < pair["interval"][1] < 0


def test_runs_that_are_not_judged_yet(tmp_path: Path) -> None:
    found = compare([a_run(tmp_path / "a", score=50.0), a_run(tmp_path / "b", score=1.0, evaluated=False)])
    assert [(run.metric, run.score, run.loss) for run in found.runs] == [
        ("map", 50, 0.5),
        ("map", None, None),
    ]
    assert found.front == [True, False]
    assert found.pairs == []
    assert list(found.shared.lacking) == ["a", "b"]


def test_classes_are_matched_by_name(runs: list[Path], tmp_path: Path) -> None:
    other = a_run(tmp_path / "other", score=50.0)
    targets, probabilities = drawn(N, noise=0.4, seed=2)
    judge(other, targets[:, ::-1], probabilities[:, ::-1], CLASSES[::-1])
    (pair,) = compare([runs[1], other]).pairs
    assert pair.p == 1


def test_other_names_of_the_classes_are_refused(runs: list[Path], tmp_path: Path) -> None:
    other = a_run(tmp_path / "other", score=50.0)
    judge(other, *drawn(N, noise=0.1, seed=2), ("0", "1", "2"))
    with pytest.raises(FeedlineError, match="a and other name the classes of the same samples differently"):
        compare([runs[0], other])


def test_one_class_a_sample_beside_several_is_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = a_run(tmp_path / "single", score=50.0, multi_label=False, last_eval={"top1": 50.0})
    assert main(["compare", str(runs[0]), str(single), str(runs[1])]) == 1
    assert capsys.readouterr().err == (
        f"error: comparing {single} (one class a sample: top-1) and {runs[0]} (multi-label: mAP) says nothing; "
        "compare runs of one kind at a time\n"
    )
