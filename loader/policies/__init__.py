"""Augmentation policies, one family a file, and the names that recipes give them."""

from __future__ import annotations

from loader.policies.auto_augment import AutoAugment
from loader.policies.base import Draw, Layer, Policy
from loader.policies.color import (
    ColorJitter,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomSolarize,
    ThreeAugment,
)
from loader.policies.rand_augment import RandAugment
from loader.policies.trivial_augment import TrivialAugmentWide
from shard.errors import FeedlineError

__all__ = [
    "AutoAugment",
    "ColorJitter",
    "Draw",
    "Layer",
    "Policy",
    "RandAugment",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomSolarize",
    "ThreeAugment",
    "TrivialAugmentWide",
    "parse_policy",
]

_NAMED: dict[str, type[AutoAugment | TrivialAugmentWide | ThreeAugment]] = {
    "autoaugment": AutoAugment,
    "ta_wide": TrivialAugmentWide,
    "3a": ThreeAugment,
}


def parse_policy(text: str) -> Policy:
    """Policy by name: "autoaugment", "ta_wide", "3a", or timm's "rand-m9-mstd0.5-inc1" and the like.

    Raises:
        FeedlineError: no such policy.
    """
    if text.split("-")[0] == "rand":
        return RandAugment.parse(text)
    if text not in _NAMED:
        raise FeedlineError(f"augmentation policy is {text!r}; give rand-m9-…, {', '.join(_NAMED)}")
    return _NAMED[text]()
