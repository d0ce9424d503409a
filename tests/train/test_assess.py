"""Figures of an evaluation: known values, and those of the libraries that define them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import classification_report, precision_recall_fscore_support
from sklearn.metrics import confusion_matrix as sklearn_matrix
from timm.data import ImageNetInfo
from timm.data.real_labels import RealLabelsImagenet

from shard.errors import FeedlineError
from train.assess import Evaluation, Samples, summarize
from train.assess.agreement import label_numbers
from train.assess.figures import bootstrap_interval, calibration, size_slices
from train.assess.other_labels import OtherLabels
from train.assess.per_class import averages, confused_pairs, confusion_matrix, scores_by_class
from train.assess.report import report

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 0, 2, 1, 1])
CONFIDENCE = np.array([0.95, 0.9, 0.85, 0.5, 0.7, 0.65, 0.6, 0.99, 0.55, 0.52])
CLASSES = ("ant", "bee", "cat", "dog")  # of the last there is no sample, and none is taken for it


def ten_samples() -> Samples:
    """The second guess is always the class after the first."""
    top = np.stack([PREDICTED, (PREDICTED + 1) % 4], axis=1)
    probabilities = np.stack([CONFIDENCE, (1 - CONFIDENCE) / 2], axis=1)
    return Samples(
        ids=np.arange(10),
        labels=LABELS,
        top=top,
        probabilities=probabilities,  # type: ignore[arg-type]  # float64: bounds of bins are met exactly
        losses=np.arange(10, dtype=np.float32) / 10,
    )


def ten() -> Evaluation:
    side = np.array([10, 10, 10, 10, 10, 20, 30, 30, 40, 50])
    return summarize(ten_samples(), CLASSES, shorter_side=side, undecoded=2, seed=1)


def test_ten_samples_by_hand() -> None:
    found = ten()
    assert (found.samples, found.undecoded, found.top1, found.top5) == (10, 2, 60.0, 90.0)
    assert found.loss == pytest.approx(0.45)
    rows = [(s.precision, s.recall, s.f1, s.support) for s in found.scores]
    expected = [(3 / 4, 3 / 4, 3 / 4, 4), (2 / 5, 2 / 3, 1 / 2, 3), (1, 1 / 3, 1 / 2, 3), (0, 0, 0, 0)]
    np.testing.assert_allclose(rows, expected, rtol=1e-12)
    means = {k: (s.precision, s.recall, s.f1, s.support) for k, s in found.averages.items()}
    np.testing.assert_allclose(means["micro"], (0.6, 0.6, 0.6, 10))
    np.testing.assert_allclose(means["macro"], (0.5375, 0.4375, 0.4375, 10))
    np.testing.assert_allclose(means["weighted"], (0.72, 0.6, 0.6, 10))
    assert found.matrix.tolist() == [[3, 1, 0, 0], [1, 2, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]]
    assert [(p.true, p.predicted, p.samples) for p in found.pairs] == [(2, 1, 2), (1, 0, 1), (0, 1, 1)]
    assert found.pairs[0].share == pytest.approx(2 / 3)
    # |hits - sum of confidences| by bin: .06, .1, .15, .3, .35, 1.15 (0.6 is the upper bound of its bin), 1.02
    assert found.ece == pytest.approx(0.313)
    assert [b.samples for b in found.calibration] == [0, 0, 0, 0, 0, 0, 0, 2, 2, 1, 1, 0, 1, 1, 2]
    assert [(s.shorter_side, s.samples, round(s.top1)) for s in found.slices] == [
        ((10, 10), 5, 80),
        ((20, 20), 1, 100),
        ((30, 50), 4, 25),
    ]


def test_report_and_json_say_the_same() -> None:
    found = ten()
    text, values = report(found), json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert "top-1 60.00 % (" in text
    assert "left out: 2 samples" in text
    assert "without a sample: 1 of 4 classes" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.split("most confused")[0].splitlines() if line}
    assert rows["bee"] == ["0.4000", "0.6667", "0.5000", "3"]
    assert values["classes"]["bee"] == {"precision": 0.4, "recall": 2 / 3, "f1": 0.5, "support": 3}
    assert values["confused"][0] == {"true": "cat", "predicted": "bee", "samples": 2, "share": 2 / 3}
    assert values["averages"]["micro"]["f1"] == 0.6
    assert values["real"] is None


def test_the_worst_of_many_classes_have_samples() -> None:
    many = CLASSES + tuple(f"untested{i}" for i in range(30))
    text = report(summarize(ten_samples(), many, shorter_side=np.full(10, 9), undecoded=0, seed=1))
    assert "the 3 worst of 3 classes with samples" in text
    assert not re.search(r"^(dog|untested)", text, re.MULTILINE)


def test_a_report_of_other_classes_than_its_scores_is_an_error() -> None:
    found = ten()
    for classes in (found.classes[:-1], (*found.classes, "eel")):
        with pytest.raises(ValueError, match="zip"):
            report(replace(found, classes=classes))


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 60))
def test_scores_are_scikit_learns(seed: int, classes: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, classes, (2, count))
    matrix = confusion_matrix(labels, predicted, classes)
    every = list(range(classes))
    np.testing.assert_array_equal(matrix, sklearn_matrix(labels, predicted, labels=every))
    theirs: dict[str, Any] = classification_report(
        labels, predicted, labels=every, output_dict=True, zero_division=0
    )
    mine = {str(i): s for i, s in enumerate(scores_by_class(matrix))}
    mine |= {f"{name} avg": s for name, s in averages(matrix).items()}
    micro = precision_recall_fscore_support(labels, predicted, labels=every, average="micro", zero_division=0)
    theirs["micro avg"] = dict(zip(("precision", "recall", "f1-score"), micro[:3], strict=True)) | {
        "support": count
    }
    for name, scores in mine.items():
        row = [theirs[name][k] for k in ("precision", "recall", "f1-score", "support")]
        got = (scores.precision, scores.recall, scores.f1, scores.support)
        np.testing.assert_allclose(got, row, rtol=1e-12, atol=1e-15, err_msg=name)


def test_calibration_of_sure_and_right_is_none() -> None:
    right = np.array([True, True, False])
    assert calibration(np.array([1.0, 1.0, 1e-9]), right)[0] == pytest.approx(0, abs=1e-9)
    error, bins = calibration(np.full(3, 1 / 15), right)  # the upper bound belongs to the first bin
    assert bins[0].samples == 3
    assert error == pytest.approx(2 / 3 - 1 / 15)


def test_interval_is_that_of_resampling_the_samples() -> None:
    right = np.arange(200) < 150
    rng = np.random.default_rng(5)
    means = [100 * rng.choice(right, 200).mean() for _ in range(4000)]
    low, high = bootstrap_interval(right, seed=0)
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1.0)
    assert (low, high) == bootstrap_interval(right, seed=0)


@pytest.mark.parametrize("n", [1, 5, 300])
def test_all_right_is_no_certainty(n: int) -> None:
    for right in (0, n):
        exact = binomtest(right, n).proportion_ci(0.95, method="exact")
        found = bootstrap_interval(np.arange(n) < right, seed=0)
        assert found == pytest.approx((100 * exact.low, 100 * exact.high))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=50))
def test_slices_share_the_samples_out(sides: list[int]) -> None:
    side: npt.NDArray[np.int64] = np.array(sides)
    slices = size_slices(side, side > 9, side > 3, seed=0)
    assert sum(s.samples for s in slices) == len(sides)
    assert sum(s.top1 * s.samples for s in slices) == pytest.approx(100 * np.count_nonzero(side > 9))
    bounds = [bound for s in slices for bound in s.shorter_side]
    assert bounds == sorted(bounds)
    assert len(slices) <= 4


def test_most_confused_first() -> None:
    matrix = np.array([[5, 2, 1], [2, 1, 0], [0, 3, 90]])
    assert [(p.true, p.predicted) for p in confused_pairs(matrix, 3)] == [(2, 1), (1, 0), (0, 1)]


# Whether classes are the same


def test_classes_in_another_order_are_found_by_name() -> None:
    numbers = label_numbers(("a", "b", "c"), ("c", "a", "b"), Path("x.pt"), "data")
    assert numbers is not None
    assert numbers.tolist() == [2, 0, 1]
    assert label_numbers(("a", "b"), ("a", "b"), Path("x.pt"), "data") is None


def test_classes_named_by_number() -> None:
    known = [f"n{i:08d}" for i in range(11)]
    found = sorted(map(str, range(11)))  # as folders sort: 0, 1, 10, 2, …
    numbers = label_numbers(known, found, Path("x.pt"), "data")
    assert numbers is not None
    assert numbers.tolist() == [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("found", [("a", "x"), ("a",), ("a", "b", "c")])
def test_other_classes_are_an_error_in_one_line(found: tuple[str, ...]) -> None:
    with pytest.raises(FeedlineError) as error:
        label_numbers(("a", "b"), found, Path("best.pt"), "/data")
    assert "best.pt" in str(error.value)
    assert "/data" in str(error.value)
    assert "\n" not in str(error.value)


# Other labels


def results(top: list[list[int]]) -> Samples:
    n = len(top)
    return Samples(
        ids=np.arange(n),
        labels=np.zeros(n, np.int64),
        top=np.array(top),
        probabilities=np.ones((n, len(top[0])), np.float32),
        losses=np.zeros(n, np.float32),
    )


def test_real_labels_as_timm_counts_them(tmp_path: Path) -> None:
    synsets = ImageNetInfo("imagenet-1k").label_names()
    rng = np.random.default_rng(0)
    given_labels = [rng.integers(0, 1000, rng.integers(0, 3)).tolist() for _ in range(40)]
    path = tmp_path / "real.json"
    path.write_text(json.dumps(given_labels))
    logits = torch.from_numpy(rng.normal(size=(40, 1000)))
    for row, labels in enumerate(given_labels):
        if labels:
            logits[row, labels[0]] += 3  # often among the first five, sometimes the first
    sources = [f"val/n01/ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(40)]
    theirs = RealLabelsImagenet(sources, str(path))
    theirs.add_result(logits)
    mine = OtherLabels(path, synsets).compare(results(logits.topk(5).indices.tolist()), sources)
    assert (mine.top1, mine.top5) == pytest.approx((theirs.get_accuracy(1), theirs.get_accuracy(5)))
    assert 0 < mine.top1 < mine.top5 < 100
    assert mine.samples == sum(map(bool, given_labels))
    assert mine.left_out == 40 - mine.samples


def test_imagenet_v2_and_own_labels(tmp_path: Path) -> None:
    synsets = ImageNetInfo("imagenet-1k").label_names()
    known = [synsets[9], synsets[3]]  # a network of two of the thousand classes, in its own order
    v2 = tmp_path / "v2.json"
    v2.write_text(json.dumps({"image_filenames": [["aaa", synsets[3]], ["bbb.jpeg", synsets[9]]]}))
    sources = ["0/aaa.jpeg", "1/bbb.jpeg", "1/ccc.jpeg"]
    found = OtherLabels(v2, known).compare(results([[1, 0], [1, 0], [0, 1]]), sources)
    assert (found.samples, found.left_out, found.top1, found.top5) == (2, 1, 50, 100)
    own = tmp_path / "own.json"
    own.write_text(
        json.dumps({"aaa.jpeg": 3, "bbb.jpeg": [3, 9], "ccc.jpeg": 500})
    )  # 500: not in the network
    found = OtherLabels(own, known).compare(results([[0, 1], [1, 0], [0, 1]]), sources)
    assert (found.samples, found.top1) == (3, pytest.approx(100 / 3))
    named = tmp_path / "named.json"
    named.write_text(json.dumps({"aaa.jpeg": "bee", "bbb.jpeg": 0}))
    found = OtherLabels(named, ["ant", "bee"]).compare(results([[1, 0], [1, 0], [0, 1]]), sources)
    assert (found.samples, found.top1) == (2, 50)


def test_numbers_are_the_classes_that_are_named_by_them(tmp_path: Path) -> None:
    classes = sorted(map(str, range(12)))  # as class folders are: 0, 1, 10, 11, 2, …
    ten, two = classes.index("10"), classes.index("2")
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"a.png": 10, "b.png": [2, 11], "c.png": "10"}))
    found = OtherLabels(own, classes).match(["a.png", "b.png", "c.png"])
    assert found == [{ten}, {two, classes.index("11")}, {ten}]
    real = tmp_path / "real.json"
    real.write_text(json.dumps([[10], [2]]))
    found = OtherLabels(real, classes).match([f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in (1, 2)])
    assert found == [{ten}, {two}]
    from_one = sorted(map(str, range(1, 13)))
    assert OtherLabels(own, from_one).match(["a.png"]) == [{from_one.index("10")}]
    named = OtherLabels(own, [*classes[:-1], "many"])  # not all of them are numbers: they are labels
    assert named.match(["a.png"]) == [{10}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot read the labels"),
        ("[1, 2]", "in a form that is known"),
        ('"text"', "in a form that is known"),
        ('{"image_filenames": [["only one"]]}', "in a form that is known"),
        ('{"a.jpg": 7}', r"neither a class name nor a class's number \(0 … 1\)"),
        ('{"a.jpg": true}', "neither a class name"),
        ('{"a.jpg": "wasp"}', "'wasp'"),
    ],
)
def test_wrong_label_files(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(FeedlineError, match=reason) as error:
        OtherLabels(path, ["ant", "bee"])
    assert "\n" not in str(error.value)


def test_labels_of_other_images(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"x.jpg": 1}')
    with pytest.raises(
        FeedlineError, match=r"labels of images such as x\.jpg, and none of the split's \(such as a/y"
    ):
        OtherLabels(path, ["ant", "bee"]).compare(results([[0, 1]]), ["a/y.jpg"])
    path.write_text('{"x.jpg": []}')
    with pytest.raises(FeedlineError, match="empty list for every image"):
        OtherLabels(path, ["ant", "bee"]).compare(results([[0, 1]]), ["a/x.jpg"])
