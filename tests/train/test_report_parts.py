"""Parts of the page of `python -m train report`: what stands in them, of which data, and that all text is escaped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loader.bad import BadSample
from shard.dataset import Dataset
from shard.errors import FeedlineError
from tests.browser import require_harmless
from train.assess.per_class import averages, scores_by_class
from train.distributed import World
from train.history import History
from train.report import figures
from train.report.class_tables import by_class
from train.report.confusion import MOST
from train.report.headline import headline
from train.report.judged import Judged, Mistake, class_names
from train.report.page import page
from train.report.pictures import thumbnails
from train.report.record import Record, read_record

HOSTILE = "<script>alert('x')</script>\"'&"


def made_up(record: Record, classes: list[str], matrix: np.ndarray[Any, Any]) -> Judged:
    """An evaluation with this confusion matrix."""
    scores = {
        name: {"precision": s.precision, "recall": s.recall, "f1": s.f1, "support": s.support}
        for name, s in zip(classes, scores_by_class(matrix), strict=True)
    }
    mean = {
        name: {"precision": s.precision, "recall": s.recall, "f1": s.f1}
        for name, s in averages(matrix).items()
    }
    bins: list[dict[str, Any]] = [{"low": 0.4, "high": 0.6, "samples": 5, "confidence": 0.5, "accuracy": 0.2}]
    bins.append({"low": 0.6, "high": 0.8, "samples": 0, "confidence": None, "accuracy": None})
    sides = [
        {"shorter_side": [n, n + 9], "samples": 5, "top1": 50.0, "interval": [40.0, 60.0]} for n in (10, 20)
    ]
    about = {
        "top1": 50.0, "top1_interval": [40.0, 60.0], "top5": 80.0, "loss": 1.0, "samples": 10, "averaged": False,
        "ece": 0.3, "classes": scores, "averages": mean, "calibration": bins, "size_slices": sides,
        "split": "val", "fingerprint": "x",
    }  # fmt: skip
    wrong = Mistake(id=0, source=HOSTILE, true=0, predicted=1, probability=0.9, true_probability=0.01)
    return Judged(folder=record.root, figures=about, classes=classes, matrix=matrix, mistakes=[wrong])


def test_everything_is_escaped(reported: Path) -> None:
    record = read_record(reported)
    event = {
        "event": "bad",
        "date": HOSTILE,
        "step": 1,
        "sample": {"id": 1, "key": HOSTILE, "shard": "", "reason": ""},
    }
    record = replace(
        record, root=Path(f"/{HOSTILE}"), history=[event], summary=record.summary | {"ended": HOSTILE}
    )
    judged = made_up(record, [HOSTILE, "b"], np.array([[1, 2], [3, 4]]))
    html = page(record, judged, None, [HOSTILE])
    assert html.count("alert(") > 10
    require_harmless(html)


def test_a_thousand_classes_stay_usable(reported: Path) -> None:
    record = read_record(reported)
    matrix = np.random.default_rng(0).poisson(0.05, (1000, 1000)) + np.diag(np.full(1000, 30))
    judged = made_up(record, [f"a class with a long name, number {i}" for i in range(1000)], matrix)
    html = page(record, judged, None, [])
    assert html.count('<th scope="row">') == MOST
    assert html.count("<tr>") > 1000
    assert len(html.encode()) < 2_000_000
    assert "Of 1,000 classes, these 20" in html
    assert "too sure of itself on the whole" in html


def test_classes_without_images_have_no_scores(reported: Path) -> None:
    record = read_record(reported)
    judged = made_up(record, ["a", "b", "c", "d"], np.array([[3, 1, 1, 0], [1, 3, 0, 0], [0] * 4, [0] * 4]))
    rows = by_class(judged, judged.classes).rows
    assert [cell.text for cell in rows[1]] == ["b", "75.0 %", "75.0 %", "75.0 %", "4", "a"]
    assert [cell.text for cell in rows[2]] == ["c", "", "", "", "0", ""]
    assert rows[2][1].number is None  # then the page sorts it last, both ways
    html = page(record, judged, None, [])
    assert "c: right\nno image to be tested on" in html
    assert re.search(r"2 classes have no score, [\w\s]+, and count as 0 % in the macro averages\.", html)
    html = page(record, made_up(record, ["a", "b"], np.array([[3, 1], [0, 0]])), None, [])
    assert re.search(r"1 class has no score, [\w\s]+, and counts as 0 % in", html)
    html = page(record, made_up(record, ["a", "b"], np.array([[3, 1], [1, 3]])), None, [])
    assert "no score" not in html


def test_labels_without_images_have_no_scores(reported: Path) -> None:
    judged = made_up(read_record(reported), ["a", "b"], np.array([[3, 0], [0, 0]]))
    for scores in judged.figures["classes"].values():
        scores["average_precision"] = 0.5
    rows = by_class(replace(judged, matrix=None), judged.classes).rows
    assert [[cell.text for cell in row] for row in rows] == [
        ["a", "50.0 %", "100.0 %", "100.0 %", "100.0 %", "3"],
        ["b", "", "", "", "", "0"],
    ]


def test_names_for_people() -> None:
    assert class_names(["n02012849", "n03126707", "n01443537"], None) == [
        "crane (n02012849)",
        "crane (n03126707)",
        "goldfish",
    ]
    dataset = Dataset(Path("/x"), ("b", "a"), "", {"class_names": ["Berta, the second", ""]})
    assert class_names(["a", "b"], dataset) == ["a", "Berta"]


def test_before_and_after_and_doubt(reported: Path) -> None:
    record = read_record(reported)
    before = {"kind": "before", "top1": {"knn": 30.0, "probe": 40.0}, "samples": 42, "train_samples": 120}
    judged = made_up(record, ["a", "b"], np.array([[1, 2], [3, 4]]))
    lines = headline(replace(record, before=before), judged, None)
    guess = "Guessing among 2 classes would be right 50 % of the time"
    assert lines[1] == f"{guess}, and naming the largest class every time 70.0 %."
    alike = made_up(record, ["a", "b"], np.array([[1, 4], [3, 2]]))
    assert headline(record, alike, None)[1] == f"{guess}."
    assert "30.0 % by their nearest neighbours" in lines[2]
    assert lines[2].endswith("after it 50.0 %: 10.0 points more.")
    few = headline(replace(record, before=before | {"samples": 4}), judged, None)[2]
    assert "on their features (judged on 4 of these images); after it 50.0 %" in few
    config = record.config
    same = replace(
        record, config=replace(config, input=replace(config.input, eval_split=config.input.train_split))
    )
    assert "says little about others" in headline(same, judged, None)[0]
    assert "(95 % interval: " in headline(record, None, None)[0]  # by the training's own evaluation


def test_a_loss_that_is_not_finite_is_no_point_of_a_curve(reported: Path) -> None:
    record = read_record(reported)
    first, last = record.evaluations
    broken = replace(record, evaluations=[first, last | {"loss": float("inf"), "ema_loss": float("nan")}])
    assert [one.caption for one in figures.curves(broken)] == ["Loss", "Accuracy", "Learning rate"]
    assert f"validation from {first['loss']:.4g} to {first['loss']:.4g}" in figures.curves(broken)[0].label


def test_images_of_another_dataset_are_refused(dataset_dir: Path) -> None:
    dataset = Dataset.open(dataset_dir)
    assert len(thumbnails(dataset, "val", dataset.fingerprint, [0, 41])) == 2
    with pytest.raises(FeedlineError, match="is not what it was"):
        thumbnails(dataset, "val", "other", [0])


def test_history_tells_of_starts_ends_and_bad_samples(reported: Path, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    bad = BadSample(3, "s.tar", "0003", 512, "no JPEG")
    for step in (0, 7):  # the first is killed
        history = History(path, step, World())
        history.log({}, step + 2)
        history.bad([bad, bad])
    history.close("stopped")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "bad", "start", "bad", "end"]
    record = replace(read_record(reported), history=lines)
    table = figures.history(record)
    assert table is not None
    assert [row[1].text for row in table.rows] == [
        "started, 1 process",
        "went on after step 7, 1 process (the start before was killed, or its machine went down)",
        "stopped by a signal, with a checkpoint at step 9",
    ]
    masked = figures.bad_samples(record)
    assert masked is not None
    assert [cell.text for cell in masked.rows[0]] == ["3", "0003", "s.tar", "no JPEG"]
    assert len(masked.rows) == 1
