"""Global order, exact resume, keyed augmentation and fast decoding for WebDataset shards."""

from loader.augment import PadCrop, Params, RandomResizedCrop, ResizeCenterCrop, Transform
from loader.loader import Batch, Loader

__all__ = ["Batch", "Loader", "PadCrop", "Params", "RandomResizedCrop", "ResizeCenterCrop", "Transform"]
