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


def sample_losses(
    logits: torch.Tensor, labels: torch.Tensor, config: LossConfig, share: torch.Tensor | None = None
) -> torch.Tensor:
    """Loss of each sample, [B].

    `bce` is timm's `BinaryCrossEntropy`: smoothing, then mixing, then the threshold.

    Args:
        logits: float32 [B, classes].
        labels: int64 [B], or soft targets [B, classes].
        config: which loss.
        share: [B], how much of its own label each row keeps; the rest is its partner's. None: not mixed.
    """
    smoothing = config.label_smoothing
    if config.loss == "ce" and share is None and labels.ndim == 1:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    target = targets(labels, logits.shape[1], smoothing)
    if share is not None:
        target = torch.lerp(partner(target), target, share[:, None])
    if config.loss == "ce":
        return F.cross_entropy(logits, target, reduction="none")
    if config.bce_threshold is not None:
        target = target.gt(config.bce_threshold).to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return each.sum(1) if config.bce_sum else each.mean(1)
