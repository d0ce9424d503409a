"""Mixup and CutMix of a batch, on the device, with parameters that are hashes of (seed, epoch, step or sample).

Which rows mix: each with the row half a micro-batch away. Ranks hold every W-th position of a global batch, so
for an even number of rows per rank these are the positions p and p ± half of (global batch / accumulate): the
same pairs, and so the same training, on any number of ranks and after any resume. Another `accumulate` gives other
pairs, and so do an odd number of rows per rank and the order "window", which deals whole shards to ranks.

Source: Zhang et al., "mixup", 2017; Yun et al., "CutMix", 2019; boxes and shares as in timm's `Mixup`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betaincinv

from loader.keyed import Stream, uniform
from shard.errors import FeedlineError
from train.losses import partner
from train.schedule import Length, parse_duration

# Columns of the parameters: share of the own pixel, box (top, left, bottom, right), share of the own label.
_COLUMNS = 6
_NEUTRAL = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
_WHETHER, _WHICH, _LAMBDA, _DOWN, _ACROSS = range(5)  # streams, from Stream.MIX


@dataclass(frozen=True, slots=True, kw_only=True)
class MixConfig:
    """Mixup and CutMix."""

    mixup: float = 0.0
    """Alpha of mixup's Beta(alpha, alpha); 0: no mixup."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta(alpha, alpha); 0: no CutMix."""
    mix_prob: float = 1.0
    """Probability of mixing at all."""
    mix_switch: float = 0.5
    """Probability of CutMix where both are on."""
    mix_mode: Literal["batch", "elem"] = "batch"
    """batch: one draw for a step's whole global batch; elem: one for every sample."""
    mix_until: str = "100%"
    """For how long; a duration such as 285ep."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        for name in ("mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise FeedlineError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("mix_prob", "mix_switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise FeedlineError(f"{name} is {getattr(self, name)}; it must lie in 0 … 1")
        parse_duration(self.mix_until, "mix_until")

    @property
    def enabled(self) -> bool:
        """Whether anything is mixed."""
        return self.mixup > 0 or self.cutmix > 0


def draw(
    config: MixConfig, seed: int, epoch: int, step: int, ids: npt.NDArray[np.int64], size: int
) -> npt.NDArray[np.float32]:
    """Mixing parameters of a micro-batch, [B, 6]: a pure function.

    Args:
        config: what to mix.
        seed: of the run.
        epoch: from 0.
        step: optimiser steps done, in the whole run.
        ids: [B], sample ids; -1 where there is none.
        size: side of the images, pixels.
    """
    single = config.mix_mode == "batch"
    keys = np.array([step]) if single else np.maximum(ids, 0)

    def number(stream: int) -> npt.NDArray[np.float64]:
        return uniform(seed, 0 if single else epoch, keys, Stream.MIX + stream)

    cut = (
        number(_WHICH) < config.mix_switch
        if config.mixup and config.cutmix
        else np.full(len(keys), not config.mixup)
    )
    alpha = np.where(cut, config.cutmix, config.mixup)
    share = betaincinv(alpha, alpha, number(_LAMBDA))
    # timm's rand_bbox: a box of the area 1 - share around a random centre, cut off at the borders.
    side = (size * np.sqrt(1 - share)).astype(np.int64)
    centre = np.stack([number(_DOWN), number(_ACROSS)]) * size
    low = np.clip(centre.astype(np.int64) - side // 2, 0, size)
    high = np.clip(centre.astype(np.int64) + side // 2, 0, size)
    kept = 1 - (high - low).prod(axis=0) / (size * size)
    rows = np.zeros((len(keys), _COLUMNS), np.float32)
    rows[:, 0] = np.where(cut, 1.0, share)
    rows[:, 1:5] = np.where(cut[:, None], np.concatenate([low, high]).T, 0)
    rows[:, 5] = np.where(cut, kept, share)
    rows[number(_WHETHER) >= config.mix_prob] = _NEUTRAL
    return np.broadcast_to(rows, (len(ids), _COLUMNS)) if single else rows


class Mixing:
    """Draws the parameters of a run's batches, and puts them on the device without waiting for it.

    Args:
        config: what to mix.
        seed: of the run.
        length: of the run.
    """

    def __init__(self, config: MixConfig, seed: int, length: Length) -> None:
        self.config, self._seed = config, seed
        self._until = length.of(config.mix_until, "mix_until")

    def __call__(self, epoch: int, step: int, ids: torch.Tensor, images: torch.Tensor) -> torch.Tensor | None:
        """Parameters of a micro-batch for `TrainStep.forward_backward`; None where nothing is ever mixed.

        After `mix_until` they say that nothing mixes, so that a compiled step stays the same.

        Raises:
            FeedlineError: a micro-batch of one row, which has no partner.
        """
        if not self.config.enabled:
            return None
        if len(ids) < 2:
            raise FeedlineError(
                "mixup and cutmix need at least 2 samples per rank and micro-batch; raise --batch-size"
            )
        if step < self._until:
            rows = draw(self.config, self._seed, epoch, step, ids.numpy(), images.shape[1])
        else:
            rows = np.broadcast_to(np.array(_NEUTRAL, np.float32), (len(ids), _COLUMNS))
        mix = torch.from_numpy(np.ascontiguousarray(rows))
        if images.device.type == "cuda":
            mix = mix.pin_memory()
        return mix.to(images.device, non_blocking=True)


def spare(mix: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Leave alone what would mix with a row that is not valid."""
    kept = partner(valid)[:, None].to(mix.dtype)
    spared = mix * kept
    spared[:, ::5] += 1 - kept  # the two shares
    return spared


def share(mix: torch.Tensor) -> torch.Tensor:
    """How much of its own label each row keeps, [B]."""
    return mix[:, 5]


def blend(pixels: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """Mix images [B, C, H, W] with their partners; fuses into its neighbours when compiled."""
    weight, top, left, bottom, right = mix[:, :5, None, None].unbind(1)
    down = torch.arange(pixels.shape[2], device=pixels.device).view(1, -1, 1)
    across = torch.arange(pixels.shape[3], device=pixels.device).view(1, 1, -1)
    inside = (down >= top) & (down < bottom) & (across >= left) & (across < right)
    own = torch.where(inside, torch.zeros_like(weight), weight)[:, None]
    return torch.lerp(partner(pixels), pixels, own)
