from __future__ import annotations

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from shard.errors import FeedlineError
from train.losses import LossConfig, partner, sample_losses, sample_weights, targets

LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 4, 2, 2])
HALF = torch.full((6,), 0.7)


def mean(config: LossConfig, share: torch.Tensor | None = None) -> float:
    return sample_losses(LOGITS, LABELS, config, share).mean().item()


def test_cross_entropy_with_smoothing_is_timms() -> None:
    expected = LabelSmoothingCrossEntropy(0.1)(LOGITS, LABELS).item()
    assert mean(LossConfig(label_smoothing=0.1)) == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("added", [False, True])
def test_bce_is_timms(threshold: float | None, added: bool) -> None:
    config = LossConfig(loss="bce", label_smoothing=0.1, bce_threshold=threshold, bce_sum=added)
    timms = BinaryCrossEntropy(0.1, target_threshold=threshold, sum_classes=added)
    assert mean(config) == pytest.approx(timms(LOGITS, LABELS).item())
    mixed = mixup_target(LABELS.roll(3), 5, 0.3, 0.1)  # stands for any soft target
    mine = sample_losses(LOGITS, mixed, LossConfig(loss="bce", bce_threshold=threshold, bce_sum=added)).mean()
    assert mine.item() == pytest.approx(timms(LOGITS, mixed).item())


def test_the_threshold_makes_both_of_two_mixed_labels_count_fully() -> None:
    plain, hard = (LossConfig(loss="bce", label_smoothing=0.1, bce_threshold=t) for t in (None, 0.2))
    target = torch.lerp(partner(targets(LABELS, 5, 0.1)), targets(LABELS, 5, 0.1), HALF[:, None])
    assert (target > 0.2).sum(1).tolist() == [2, 2, 2, 2, 2, 2]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, (target > 0.2).float())
    assert mean(hard, HALF) == pytest.approx(expected.item())
    assert mean(hard, HALF) != pytest.approx(mean(plain, HALF), rel=0.01)


def test_mixed_cross_entropy_is_timms_and_the_mean_of_both_labels() -> None:
    share = torch.tensor([0.2, 0.9, 1.0, 0.0, 0.5, 0.3])
    mine = sample_losses(LOGITS, LABELS, LossConfig(label_smoothing=0.1), share)
    own, other = (
        sample_losses(LOGITS, labels, LossConfig(label_smoothing=0.1)) for labels in (LABELS, partner(LABELS))
    )
    torch.testing.assert_close(mine, share * own + (1 - share) * other)
    # timm's partner is the mirrored row: give it labels such that the pairs are the same.
    paired = torch.cat([LABELS[:3], LABELS[3:].flip(0)])
    logits = torch.cat([LOGITS[:3], LOGITS[3:].flip(0)])
    timms = SoftTargetCrossEntropy()(logits, mixup_target(paired, 5, 0.7, 0.1))
    assert mean(LossConfig(label_smoothing=0.1), HALF) == pytest.approx(timms.item())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"loss": "bce", "bce_threshold": 1.5}, "bce_threshold is 1.5"),
        ({"bce_threshold": 0.2}, "belongs to bce, but loss is 'ce'"),
        ({"bce_sum": True}, "bce_sum is True, which belongs to bce"),
    ],
)
def test_impossible_losses_are_errors(given: dict[str, object], message: str) -> None:
    with pytest.raises(FeedlineError, match=message):
        LossConfig(**given)  # type: ignore[arg-type]


WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0, 0.25])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_torchs(smoothing: float) -> None:
    config = LossConfig(label_smoothing=smoothing)
    theirs = torch.nn.CrossEntropyLoss(WEIGHTS, label_smoothing=smoothing)(LOGITS, LABELS)
    each = sample_losses(LOGITS, LABELS, config, weights=WEIGHTS)
    assert each.sum() / sample_weights(LABELS, WEIGHTS).sum() == pytest.approx(theirs.item())
    # Targets that happen to be one label weigh as that label, mixed ones as their parts.
    soft = targets(LABELS, 5, 0.0)
    torch.testing.assert_close(sample_weights(soft, WEIGHTS), WEIGHTS[LABELS])
    mixed = sample_weights(LABELS, WEIGHTS, HALF)
    torch.testing.assert_close(mixed, 0.7 * WEIGHTS[LABELS] + 0.3 * WEIGHTS[partner(LABELS)])
    whole = sample_losses(LOGITS, LABELS, config, torch.ones(6), WEIGHTS)
    torch.testing.assert_close(whole, each)


def test_weights_are_for_cross_entropy() -> None:
    with pytest.raises(FeedlineError, match="class_weights is 'balanced', which belongs to ce"):
        LossConfig(loss="bce", class_weights="balanced")
