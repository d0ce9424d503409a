"""Global order, exact resume, keyed augmentation and fast decoding for WebDataset shards."""

from loader.augment import Compose, PadCrop, RandomResizedCrop, ResizeCenterCrop
from loader.bad import BadSample
from loader.batch import Batch
from loader.cache import ShardCache
from loader.erase import RandomErasing
from loader.loader import Loader
from loader.order import Order
from loader.params import Params, Transform
from loader.policies import (
    AutoAugment,
    ColorJitter,
    RandAugment,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomSolarize,
    ThreeAugment,
    TrivialAugmentWide,
    parse_policy,
)
from loader.replay import Replayed, replay

__all__ = [
    "AutoAugment",
    "BadSample",
    "Batch",
    "ColorJitter",
    "Compose",
    "Loader",
    "Order",
    "PadCrop",
    "Params",
    "RandAugment",
    "RandomErasing",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomResizedCrop",
    "RandomSolarize",
    "Replayed",
    "ResizeCenterCrop",
    "ShardCache",
    "ThreeAugment",
    "Transform",
    "TrivialAugmentWide",
    "parse_policy",
    "replay",
]
