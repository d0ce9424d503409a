"""The optimiser, and the learning rate as a pure function of the step."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from shard.errors import FeedlineError

# These can take the gradient scaler's verdict on the device; the others make it wait for the host each step.
_FUSED = ("sgd", "momentum", "adam", "adamw")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Optimiser. Norms and biases have no weight decay."""

    optimizer: str = "sgd"
    """timm's name: sgd (with Nesterov momentum), momentum (without), adamw, …"""
    lr: float = 0.1
    """Peak learning rate, for the given global batch; nothing scales it."""
    momentum: float = 0.9
    """Momentum, for optimisers that have one."""
    weight_decay: float = 5e-5
    """Weight decay of matrices and filters."""

    def __post_init__(self) -> None:
        """Reject negative numbers."""
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not value >= 0:
                raise FeedlineError(f"{name} is {value}; it must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Length of the training and course of the learning rate."""

    epochs: int = 90
    """Passes over the training split."""
    warmup_epochs: float = 5.0
    """Linear warm-up from 0; parts of an epoch are allowed."""
    decay: Literal["cosine", "linear"] = "cosine"
    """Course from the peak to final_lr."""
    final_lr: float = 0.0
    """Learning rate that the decay ends at."""

    def __post_init__(self) -> None:
        """Reject a schedule without room."""
        if self.epochs < 1:
            raise FeedlineError(f"epochs is {self.epochs}; it must be at least 1")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise FeedlineError(
                f"warmup_epochs is {self.warmup_epochs}; with {self.epochs} epochs it must lie in "
                f"0 … {self.epochs}"
            )


def lr_at(step: int, steps_per_epoch: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of step 0, 1, … of the whole training.

    The warm-up of W steps ends with `peak` at step W - 1; after it the decay starts at `peak` and would
    reach `final_lr` one step after the last. With warm-up and linear decay this is the triangular schedule.
    """
    total = schedule.epochs * steps_per_epoch
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    left = 1 - progress if schedule.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final_lr + (peak - schedule.final_lr) * left


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Make timm's optimiser over `model`'s parameters; 1-d parameters and biases go without weight decay.

    Raises:
        FeedlineError: timm has no optimiser of this name.
    """
    known = list_optimizers()
    if config.optimizer not in known:
        near = difflib.get_close_matches(config.optimizer, known, n=1)
        raise FeedlineError(
            f"optimizer is {config.optimizer!r}, which timm does not have"
            + (f"; did you mean {near[0]!r}?" if near else "; see timm.optim.list_optimizers()")
        )
    on_gpu = next(model.parameters()).is_cuda
    options = {"fused": True} if on_gpu and config.optimizer in _FUSED else {}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model,
        opt=config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        **options,
    )
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, times its `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
