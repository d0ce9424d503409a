"""Figures of multi-label evaluations: known values, and those of scikit-learn; what such trainings refuse."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, classification_report

from loader import Batch
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.assess.multi_label import (
    MultiLabelEvaluation,
    MultiLabelSamples,
    averages,
    micro_f1_interval,
    report,
    summarize,
)
from train.distributed import World
from train.features import Features
from train.labels import fitted
from train.losses import LossConfig, sample_losses
from train.multi_label import MultiLabelTally, average_precision, average_precisions, label_lists
from train.probe import fit
from train.recipes import recipe
from train.replay import write

# Of class 2 there is no sample, and none is taken for it.
TARGETS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]], bool)
SHARES = np.array(
    [[0.9, 0.2, 0.1], [0.6, 0.7, 0.1], [0.7, 0.4, 0.0], [0.1, 0.5, 0.2], [0.3, 0.1, 0.3], [0.2, 0.9, 0.1]],
    np.float32,
)
CLASSES = ("ant", "bee", "cat")


def six() -> MultiLabelEvaluation:
    losses = np.arange(6, dtype=np.float32)
    logits = torch.from_numpy(SHARES).logit().numpy()
    samples = MultiLabelSamples(ids=np.arange(6), targets=TARGETS, logits=logits, losses=losses)
    return summarize(samples, CLASSES, undecoded=1, seed=3)


def test_six_samples_by_hand() -> None:
    found = six()
    # ant: ranked right, wrong, right, right; bee: right, right, wrong, right; cat: no sample.
    assert found.precisions == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3, (1 + 1 + 3 / 4) / 3, 0])
    assert found.map == pytest.approx(100 * np.mean(found.precisions))
    rows = [(s.precision, s.recall, s.f1, s.support) for s in found.scores]
    np.testing.assert_allclose(rows, [(2 / 3, 2 / 3, 2 / 3, 3), (2 / 3, 2 / 3, 2 / 3, 3), (0, 0, 0, 0)])
    assert found.micro_f1 == pytest.approx(100 * 2 / 3)
    assert (found.samples, found.undecoded, found.loss) == (6, 1, 2.5)
    low, high = found.micro_f1_interval
    assert low < found.micro_f1 < high
    text = report(found)
    assert "mAP 57.41 %, micro-F1 66.67 %" in text
    assert "samples average" in text
    assert "without a sample: 1 of 3 classes" in text
    many = replace(
        found,
        classes=tuple(map(str, range(31))),
        precisions=[0.5] * 29 + [0.25, 0.0],
        scores=[found.scores[0]] * 30 + [found.scores[2]],
    )
    worst = report(many).split("the 20 worst of 30 classes with samples")[1].splitlines()
    assert worst[1].split()[:2] == ["29", "0.2500"]  # 30 has no sample
    for short in (replace(many, classes=many.classes[:-1]), replace(many, precisions=many.precisions[:-1])):
        with pytest.raises(ValueError, match="zip"):
            report(short)


def test_sure_samples_are_ranked_by_their_logits() -> None:
    """Their probabilities are all 1 in float32, and would tell no order."""
    logits = torch.tensor([[20.0], [30], [40], [50]])
    targets = torch.tensor([[0.0], [0], [1], [1]])
    tally = MultiLabelTally(World())
    images, ids = torch.zeros(4, 1, 1, 3, dtype=torch.uint8), torch.arange(4)
    tally.add(logits, Batch(images, targets, ids, torch.ones(4, dtype=torch.bool), 4))
    assert tally.result().map == 100
    losses = np.zeros(4, np.float32)
    samples = MultiLabelSamples(
        ids=ids.numpy(), targets=targets.numpy() > 0, logits=logits.numpy(), losses=losses
    )
    assert summarize(samples, ("ant",)).map == 100


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.sampled_from([2, 5, 1000]))
@settings(max_examples=60, deadline=None)
def test_average_precision_is_scikit_learns(seed: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.random((n, 3)) < 0.3
    scores = (rng.integers(0, levels, (n, 3)) / levels).astype(np.float32)  # with ties
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without samples
        expected = [average_precision_score(t, s) for t, s in zip(targets.T, scores.T, strict=True)]
    np.testing.assert_allclose(average_precisions(targets, scores), expected, rtol=1e-12)
    order = rng.permutation(n)
    assert average_precision(targets[order, 0], scores[order, 0]) == average_precision(
        targets[:, 0], scores[:, 0]
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.sampled_from([0.0, 0.2, 0.6]))
@settings(max_examples=40, deadline=None)
def test_averages_are_scikit_learns(seed: int, n: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    targets, predicted = rng.random((n, 4)) < 0.4, rng.random((n, 4)) < share
    theirs = classification_report(targets, predicted, output_dict=True, zero_division=0)
    for name, mine in averages(targets, predicted).items():
        expected = theirs[f"{name} avg"]
        names = ("precision", "recall", "f1-score", "support")
        np.testing.assert_allclose(
            (mine.precision, mine.recall, mine.f1, mine.support), [expected[key] for key in names], atol=1e-12
        )


def test_the_interval_is_that_of_resampled_samples() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random((60, 3)) < 0.4
    predicted = targets ^ (rng.random((60, 3)) < 0.2)
    found = []
    for _ in range(2000):
        rows = rng.integers(0, 60, 60)
        hit = (targets & predicted)[rows].sum()
        found.append(200 * hit / (targets[rows].sum() + predicted[rows].sum()))
    expected = np.percentile(found, [2.5, 97.5])
    np.testing.assert_allclose(micro_f1_interval(targets, predicted, seed=1), expected, atol=1)
    assert micro_f1_interval(targets, targets, seed=1) == (100, 100)


def test_the_loss_of_several_labels_is_torchs_and_mixes() -> None:
    logits = torch.randn(4, 3)
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
    loss = torch.nn.BCEWithLogitsLoss(reduction="none")
    config = LossConfig(loss="bce")
    torch.testing.assert_close(sample_losses(logits, labels, config), loss(logits, labels).mean(1))
    share = torch.tensor([0.3, 1.0, 0.5, 0.0])
    mixed = share[:, None] * labels + (1 - share[:, None]) * labels.roll(2, 0)
    torch.testing.assert_close(sample_losses(logits, labels, config, share), loss(logits, mixed).mean(1))


def test_a_probe_of_several_labels_separates_each_class() -> None:
    values = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
    labels = (values[:, :2] > 0).float()
    data = Features(torch.arange(80), labels, values)
    probe = fit(data, 2)
    assert probe.score(data) == 100
    assert ((probe(values) > 0) == (labels > 0)).float().mean() > 0.98


def test_labels_of_a_batch_as_lists() -> None:
    assert label_lists(torch.tensor([[1.0, 0, 1], [0, 0, 0]])) == [[0, 2], []]
    assert label_lists(torch.tensor([2, 0])) == [2, 0]


def test_a_broken_batch_is_shown_by_all_its_classes(tmp_path: Path) -> None:
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    images, ids = torch.zeros(3, 4, 4, 3, dtype=torch.uint8), torch.tensor([7, 8, 9])
    batch = Batch(images, labels, ids, torch.ones(3, dtype=torch.bool), 3)
    found = write(batch, [7, 8], CLASSES, tmp_path)
    assert [path.name for path in found] == ["7-ant+cat.png", "8-no class.png"]
    many = tuple("ä" * 99 + letter for letter in "abc")  # file names end at 255 bytes
    assert all(path.exists() for path in write(batch, [7, 9], many, tmp_path))


class Several:
    """As much of a dataset as is asked for."""

    root = "attributes"

    def __init__(self, *, multi_label: bool) -> None:
        self.multi_label = multi_label


def dataset(*, multi_label: bool = True) -> Dataset:
    return cast(Dataset, Several(multi_label=multi_label))


def test_a_recipe_is_fitted_to_several_labels() -> None:
    given = recipe("finetune")
    found = fitted(given, dataset(), ())
    assert (found.loss.loss, found.stop.stop_metric) == ("bce", "map")
    assert found.loss.label_smoothing == given.loss.label_smoothing
    assert fitted(found, dataset(), ("loss", "stop_metric")) == found
    assert fitted(given, dataset(multi_label=False), ()) is given


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("loss", {"loss": "ce"}, "loss 'ce' is not available for multi-label datasets; use bce"),
        ("loss", {"class_weights": "balanced"}, "class_weights 'balanced' is not available"),
        ("input", {"balance": 0.5}, r"balance 0\.5 is not available"),
        ("evaluation", {"before": "knn"}, "before 'knn' is not available"),
        ("stop", {"stop_metric": "top5"}, "stop_metric 'top5' is not available"),
    ],
)
def test_what_needs_one_class_a_sample_refuses(group: str, values: dict[str, Any], message: str) -> None:
    config = recipe("finetune")
    config = replace(config, **{group: replace(getattr(config, group), **values)})
    with pytest.raises(FeedlineError, match=message):
        fitted(config, dataset(), tuple(values))


def test_map_needs_several_labels() -> None:
    config = recipe("finetune")
    config = replace(config, stop=replace(config.stop, stop_metric="map"))
    with pytest.raises(FeedlineError, match="stop_metric is 'map', but attributes is not multi-label"):
        fitted(config, dataset(multi_label=False), ())
