"""`python -m train compare`: figures of runs, what is the same data, and what is a mistake."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy.stats import binomtest

from shard.errors import FeedlineError
from tests.train.runs import make_run
from train import checkpoint
from train.__main__ import main
from train.assess.files import write_parquet
from train.commands.compare import compare
from train.commands.compare import main as compare_command
from train.compare.pareto import COSTS, on_front
from train.compare.runs import _names, differing
from train.compare.significance import holm
from train.compare.tables import _settings
from train.config import load, save, to_dict

CLASSES = ("ant", "bee", "cat")

N = 200


def a_run(root: Path, *, top1: float, wall_s: float | None = 60.0, **change: Any) -> Path:
    """A run folder with a best checkpoint; finished, if it has a time."""
    make_run(root, "test_efficientnet", CLASSES, 24, data=Path("/data/insects"))
    config = load(root / "config.yaml")
    for key, value in change.items():
        group = next(g for g in ("optim", "input", "schedule") if hasattr(getattr(config, g), key))
        config = _with(config, group, key, value)
    save(config, root / "config.yaml")
    content = checkpoint.load(root / "checkpoints" / "best.pt")
    del content["format"]
    content |= {
        "config": to_dict(config),
        "fingerprint": "insects",
        "elapsed_s": 33.0,
        "last_eval": {"top1": top1 - 9, "ema_top1": top1, "ema_top5": 99.0, "ema_loss": 0.5, "loss": 0.7},
    }
    checkpoint.save(root / "checkpoints" / "best.pt", content)
    lines = [
        {"kind": "train", "step": 10, "images_per_s": 50.0, "images_per_joule": 2.0},
        {"kind": "train", "step": 20, "images_per_s": 100.0, "images_per_joule": 4.0},
        {"kind": "eval", "step": 20, "epoch": 1, "top1": top1},
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    if wall_s is not None:
        summary = {
            "wall_s": wall_s,
            "images_per_s": 80.0,
            "epochs": 4,
            "ranks": 2,
            "device": "cuda",
            "ended": "",
            "synthetic": False,
        }
        (root / "summary.json").write_text(json.dumps(summary))
    return root


def _with(config: Any, group: str, key: str, value: Any) -> Any:
    return replace(config, **{group: replace(getattr(config, group), **{key: value})})


def evaluate(root: Path, right: np.ndarray, *, fingerprint: str = "insects", **change: Any) -> None:
    """What `python -m train eval` leaves of samples that are right or not."""
    folder = root / "eval" / f"{fingerprint}-val-best"
    folder.mkdir(parents=True)
    write_parquet(pa.table({"id": np.arange(len(right)), "right": right}), folder / "predictions.parquet")
    about = {
        "fingerprint": fingerprint, "split": "val", "averaged": True, "data": f"/data/{fingerprint}", "epoch": 3,
        "flip_tta": False, "checkpoint": str(root / "checkpoints" / "best.pt"), "top1": float(100 * right.sum() / N),
        "top5": 100.0, "loss": 0.25, "top1_interval": [10.0, 90.0],
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(about | change))


def hits(right: int, shift: int = 0) -> np.ndarray:
    """`right` of N samples, from the one numbered `shift` on."""
    found = np.zeros(N, bool)
    found[shift : shift + right] = True
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs: fast, slow and better, and unfinished."""
    root = tmp_path_factory.mktemp("runs")
    return [
        a_run(root / "fast", top1=60.0),
        a_run(root / "slow", top1=75.0, wall_s=3600.0, lr=0.3, batch_size=32),
        a_run(root / "going", top1=70.0, wall_s=None, lr=0.3),
    ]


def test_figures_of_runs(runs: list[Path]) -> None:
    found = compare(runs)
    fast, slow, going = found.runs
    assert (fast.name, fast.top1, fast.loss, fast.best_epoch) == (
        "fast",
        60,
        0.5,
        3,
    )  # of the averaged weights
    assert (fast.images_per_s, fast.time_s, fast.device) == (80, 60, "2 × cuda")
    assert fast.energy_kj == pytest.approx((10 * 64 / 2 + 10 * 64 / 4) / 1000)
    assert slow.energy_kj == pytest.approx((10 * 32 / 2 + 10 * 32 / 4) / 1000)  # of half the batch size
    assert fast.parameters is not None
    assert fast.parameters > 1000
    assert fast.gflops is not None
    assert fast.gflops > 0
    assert (going.status, going.epochs, going.time_s, going.device) == ("unfinished: 3 of 8ep", 3, 33, None)
    assert going.images_per_s == pytest.approx(2 / (1 / 50 + 1 / 100), abs=0.1)
    assert found.differing == {"batch_size": [64, 32, 64], "lr": [0.1, 0.3, 0.3]}
    assert differing([going, going]) == {}
    assert found.front == [True, True, False]  # the unfinished one would be on it
    assert on_front(found.runs, COSTS["speed"]) == [False, True, False]  # as fast, and better
    assert list(found.shared.lacking) == ["fast", "slow", "going"]


def test_the_command(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(path) for path in runs]
    assert main(["compare", *words, "--picture", str(tmp_path / "a.png")]) == 0
    out = capsys.readouterr().out
    assert "unfinished: 3 of 8ep" in out
    assert "Pareto front): fast, slow" in out
    assert f"  python -m train eval {runs[0]}\n" in out
    assert np.ptp(np.asarray(Image.open(tmp_path / "a.png"))) == 255
    assert main(["compare", *words, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["name"], row["top1"], row["lr"], row["pareto"]) for row in rows] == [
        ("fast", "60.0", "0.1", "True"), ("slow", "75.0", "0.3", "True"), ("going", "70.0", "0.3", "False"),
    ]  # fmt: skip
    assert main(["compare", *words, "--format", "markdown"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].count("|") == table[1].count("|") == table[2].count("|")
    assert table[2].startswith("| fast | finished | 60.00 |")


@pytest.mark.parametrize("help_alone", [False, True])
def test_who_reads_no_further_is_no_error(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, help_alone: bool
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert main(["compare", *(["--help"] if help_alone else map(str, runs))]) == 141


def test_settings_of_many_runs_stand_below_each_other(runs: list[Path]) -> None:
    found = compare(runs)
    assert [row[0] for row in _settings(found)] == ["", "batch_size", "lr"]
    many = replace(found, runs=found.runs * 2, differing={k: v * 2 for k, v in found.differing.items()})
    assert _settings(many)[:3] == [("", "batch_size", "lr"), ("fast", "64", "0.1"), ("slow", "32", "0.3")]


def test_significance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = {"a": hits(150), "b": hits(110), "c": hits(152, shift=3)}
    roots = []
    for name, of in right.items():
        roots.append(a_run(tmp_path / name, top1=1.0))
        evaluate(roots[-1], of)
    assert main(["compare", *map(str, roots), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # Of the shared evaluation, not of the training's own.
    assert [run["top1"] for run in found["runs"]] == [75, 55, 76]
    pairs = {(pair["a"], pair["b"]): pair for pair in found["pairs"]}
    assert pairs["a", "b"]["p"] == pytest.approx(2 * 0.5**40)
    assert pairs["a", "c"]["p"] == pytest.approx(binomtest(3, 8, 0.5).pvalue)
    assert [pair["significant"] for pair in found["pairs"]] == [True, False, True]
    plain, adjusted = ([pair[key] for pair in found["pairs"]] for key in ("p", "adjusted_p"))
    assert adjusted == holm(plain) != plain
    assert main(["compare", *map(str, roots)]) == 0
    out = capsys.readouterr().out
    assert "a is better than b by 20.00 points" in out
    assert "a and c: no significant difference" in out
    assert "Holm's correction" in out
    assert "no setting differs" in out
    assert "train eval" not in out


@pytest.mark.parametrize(
    "change", [{"epoch": 2}, {"flip_tta": True}, {"averaged": False}, {"own_checkpoint": False}]
)
def test_an_evaluation_of_another_checkpoint_or_in_another_way_does_not_count(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    roots = [a_run(tmp_path / name, top1=50.0) for name in ("a", "b")]
    evaluate(roots[0], hits(100), **change)
    evaluate(roots[1], hits(100))
    found = compare(roots)
    assert found.pairs == []
    assert found.shared.lacking == {"a": f"python -m train eval {roots[0]}"}


def test_runs_of_different_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roots = [a_run(tmp_path / name, top1=50.0) for name in ("a", "b")]
    path = roots[1] / "checkpoints" / "best.pt"
    content = checkpoint.load(path) | {"fingerprint": "birds"}
    del content["format"]
    checkpoint.save(path, content)
    assert main(["compare", *map(str, roots)]) == 1
    error = capsys.readouterr().err
    assert "evaluated on different data, so their accuracies say nothing about each other" in error
    assert f"python -m train eval {roots[1]} --data /data/insects --split val" in error
    evaluate(roots[0], hits(150), fingerprint="common")
    with pytest.raises(FeedlineError, match=f"eval {roots[1]} --data /data/common --split val"):
        compare(roots)
    evaluate(roots[1], hits(110), fingerprint="common")
    found = compare(roots)
    assert [run.top1 for run in found.runs] == [75, 55]
    assert found.pairs[0].significant


def test_mistakes(runs: list[Path], tmp_path: Path) -> None:
    for words, reason in (
        ([runs[0], tmp_path], "is no run folder"),
        ([runs[0], runs[1], runs[0].parent / "slow"], "is given twice"),
        ([runs[0], tmp_path / "nowhere"], "is no folder"),
    ):
        with pytest.raises(FeedlineError, match=reason):
            compare_command([str(word) for word in words])
    with pytest.raises(SystemExit) as error:
        compare_command([str(runs[0])])
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("summary.json", "[1]"),
        ("summary.json", ""),
        ("metrics.jsonl", '{"kind": "tr\n'),
        ("checkpoints/best.pt", "x"),
        ("checkpoints/last.pt", "x"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, file: str, text: str) -> None:
    roots = [a_run(tmp_path / name, top1=50.0) for name in ("a", "b")]
    if file == "checkpoints/last.pt":
        (roots[1] / "summary.json").unlink()  # of a finished run it is not looked at
    (roots[1] / file).write_text(text)
    with pytest.raises(FeedlineError, match=f"{roots[1] / file} .*remove it"):
        compare(roots)


def test_names_that_tell_runs_apart() -> None:
    assert _names([Path("/x/a"), Path("/y/b")]) == ["a", "b"]
    assert _names([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
