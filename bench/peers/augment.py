"""One augmentation policy, as each library spells it; and torchvision's training transform, which many share.

To compare equal work, everybody has to apply as many operations. torchvision and DALI apply all that they choose, of
which one in 14 is the identity; timm's notation, which is ours, has a probability, 0.5 unless it is given. So a
RandAugment without a probability is measured with 13 / 14.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from bench.peers.base import MEAN, STD, Job
from loader import RandAugment, RandomResizedCrop, parse_policy
from shard.errors import FeedlineError

_BINS = 31  # of magnitude, in torchvision and DALI: 0 … 30


def resolve(text: str) -> str:
    """Check a policy's name, and give RandAugment a probability at which the work is equal.

    Raises:
        FeedlineError: no such policy.
    """
    policy = parse_policy(text)
    given = any(part[0] == "p" for part in text.split("-")[1:])
    return f"{text}-p{13 / 14:.3f}" if isinstance(policy, RandAugment) and not given else text


def rand_augment(text: str) -> tuple[int, int]:
    """Number of operations, and the magnitude out of 0 … 30, of a RandAugment in timm's notation (out of 0 … 10)."""
    policy = parse_policy(text)
    if not isinstance(policy, RandAugment):
        raise FeedlineError(f"augmentation is {text!r}; this peer knows rand-… alone")
    return policy.layers_per_image, round(min(policy.magnitude, 10.0) / 10 * (_BINS - 1))


def vision_policy(text: str | None, module: Any) -> list[Any]:
    """The policy as a list of torchvision transforms (at most one), of `torchvision.transforms` or its `v2`."""
    if text is None:
        return []
    linear = {"interpolation": InterpolationMode.BILINEAR}
    if text == "ta_wide":
        return [module.TrivialAugmentWide(**linear)]
    if text == "autoaugment":
        return [module.AutoAugment(**linear)]
    operations, magnitude = rand_augment(text)
    return [module.RandAugment(operations, magnitude, _BINS, **linear)]


def vision_transform(job: Job) -> Any:
    """PyTorch's ImageNet example: Pillow image in, normalised float [3, H, W] out."""
    crop = job.crop
    return v1.Compose(
        [
            v1.RandomResizedCrop(crop.size, crop.scale, crop.ratio),
            v1.RandomHorizontalFlip(crop.hflip),
            *vision_policy(job.augment, v1),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
        ]
    )


def tensor_transform(job: Job) -> Any:
    """Torchvision's reference scripts with their tensor backend: uint8 [3, H, W] in, normalised float out."""
    crop = job.crop
    return v2.Compose(
        [
            v2.RandomResizedCrop(crop.size, crop.scale, crop.ratio, antialias=True),
            v2.RandomHorizontalFlip(crop.hflip),
            *vision_policy(job.augment, v2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def draw_window(
    width: int, height: int, crop: RandomResizedCrop, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw left, top, width and height, for libraries without a random resized crop; as Szegedy et al. (2014)."""
    for _ in range(10):
        area = width * height * rng.uniform(*crop.scale)
        ratio = math.exp(rng.uniform(math.log(crop.ratio[0]), math.log(crop.ratio[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def operations_per_image(text: str | None, identities: tuple[int, int]) -> float | None:
    """Operations that change something, on average; None where the policy is no RandAugment.

    Args:
        text: the policy.
        identities: how many of the peer's operations are none, and of how many; 0: it knows the probability.
    """
    policy = parse_policy(text) if text is not None else None
    if not isinstance(policy, RandAugment):
        return None
    nothing, choices = identities
    share = policy.probability if nothing == 0 else 1 - nothing / choices
    return round(policy.layers_per_image * share, 2)
