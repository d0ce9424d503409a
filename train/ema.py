"""Exponential moving average of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.utils import ModelEmaV3

from shard.errors import FeedlineError
from train.model import Normalized


@dataclass(frozen=True, slots=True, kw_only=True)
class EmaConfig:
    """Moving average of the weights, evaluated and saved beside them."""

    ema_decay: float = 0.0
    """Share of the average that stays in a step; 0: no average."""
    ema_warmup: bool = False
    """Let the decay rise with the steps, as 1 - (1 + step) ** (-2/3): for short trainings."""

    def __post_init__(self) -> None:
        """Reject what is no share."""
        if not 0 <= self.ema_decay < 1:
            raise FeedlineError(f"ema_decay is {self.ema_decay}; it must lie in 0 … 1, 1 excluded")


class Ema:
    """timm's `ModelEmaV3` over a model: parameters and running statistics are averaged, counters copied.

    Attributes:
        net: the averaged model, in evaluation mode.
    """

    def __init__(self, net: Normalized, config: EmaConfig) -> None:
        self._average = ModelEmaV3(net, decay=config.ema_decay, use_warmup=config.ema_warmup)
        averaged: Normalized = self._average.module
        self.net = averaged.requires_grad_(False)

    def decay(self, step: int) -> float:
        """Decay in step 1, 2, …; the first copies the weights."""
        return float(self._average.get_decay(step))

    def update(self, net: Normalized, step: int) -> None:
        """Take in the weights after step 1, 2, …; does not wait for the device."""
        self._average.update(net, step=step)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged model's state, keys of the bare timm model."""
        state: dict[str, torch.Tensor] = self.net.model.state_dict()
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a saved average."""
        self.net.model.load_state_dict(state)


def make_ema(net: Normalized, config: EmaConfig) -> Ema | None:
    """Start an average of `net`, or none; before DDP wraps the model."""
    return Ema(net, config) if config.ema_decay else None
