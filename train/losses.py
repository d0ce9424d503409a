"""Loss of each sample: cross-entropy or binary cross-entropy, on smoothed, mixed or soft targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from shard.errors import FeedlineError


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Loss."""

    loss: Literal["ce", "bce"] = "ce"
    """ce: cross-entropy; bce: binary cross-entropy of every class (ResNet strikes back, DeiT III)."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    bce_threshold: float | None = None
    """bce: targets above it count as 1, others as 0; None: as they are."""
    bce_sum: bool = False
    """bce: add up the classes instead of averaging them."""
    class_weights: str = "none"
    """ce: how much samples weigh by class. balanced: inversely to the size of their class; or a file, .json {class:
    weight} or .csv class,weight; or none."""

    def __post_init__(self) -> None:
        """Reject values out of range, and settings of the other loss."""
        if not 0 <= self.label_smoothing < 1:
            raise FeedlineError(
                f"label_smoothing is {self.label_smoothing}; it must lie in 0 … 1, 1 excluded"
            )
        if self.bce_threshold is not None and not 0 <= self.bce_threshold < 1:
            raise FeedlineError(f"bce_threshold is {self.bce_threshold}; it must lie in 0 … 1, 1 excluded")
        if self.loss == "ce" and (self.bce_threshold is not None or self.bce_sum):
            name = "bce_threshold" if self.bce_threshold is not None else "bce_sum"
            raise FeedlineError(
                f"{name} is {getattr(self, name)}, which belongs to bce, but loss is 'ce'; give --loss bce"
            )
        if self.loss == "bce" and self.class_weights != "none":
            raise FeedlineError(
                f"class_weights is {self.class_weights!r}, which belongs to ce, but loss is 'bce'; give --loss ce"
            )


def partner(rows: torch.Tensor) -> torch.Tensor:
    """Rows [B, …] in the order of each row's mixing partner: half a batch away."""
    return rows.roll(rows.shape[0] // 2, dims=0)


def targets(labels: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """Target distributions [B, classes], float32, smoothed as in cross-entropy.

    Args:
        labels: int64 [B], or distributions [B, classes].
        classes: how many.
        smoothing: share spread over all classes.
    """
    if labels.ndim == 2:
        return labels.float() * (1 - smoothing) + smoothing / classes
    spread = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    return spread.scatter_(1, labels[:, None], 1 - smoothing + smoothing / classes)


def sample_weights(
    labels: torch.Tensor, weights: torch.Tensor, share: torch.Tensor | None = None
) -> torch.Tensor:
    """How much each sample weighs, [B]: as its class, as its target says where it is mixed or soft.

    A batch's weighted losses are divided by the sum of these: what torch's `CrossEntropyLoss(weight)` does with labels.
    (With soft targets it divides by the number of samples; then weights of any scale would change the step.)

    Args:
        labels: int64 [B], or soft targets [B, classes].
        weights: float32 [classes].
        share: as in `sample_losses`.
    """
    own = labels @ weights if labels.ndim == 2 else weights[labels]
    return own if share is None else torch.lerp(partner(own), own, share)


def sample_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: LossConfig,
    share: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Loss of each sample, [B].

    `bce` is timm's `BinaryCrossEntropy`: smoothing, then mixing, then the threshold.

    Args:
        logits: float32 [B, classes].
        labels: int64 [B], or soft targets [B, classes].
        config: which loss.
        share: [B], how much of its own label each row keeps; the rest is its partner's. None: not mixed.
        weights: of the classes, float32 [classes], for cross-entropy; as in `torch.nn.functional.cross_entropy`.
    """
    smoothing = config.label_smoothing
    if config.loss == "ce" and share is None and labels.ndim == 1:
        return F.cross_entropy(logits, labels, weights, label_smoothing=smoothing, reduction="none")
    target = targets(labels, logits.shape[1], smoothing)
    if share is not None:
        target = torch.lerp(partner(target), target, share[:, None])
    if config.loss == "ce":
        return F.cross_entropy(logits, target, weights, reduction="none")
    if config.bce_threshold is not None:
        target = target.gt(config.bce_threshold).to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return each.sum(1) if config.bce_sum else each.mean(1)
