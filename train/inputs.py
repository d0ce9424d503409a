"""The two loaders of a run: training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from loader import (
    ColorJitter,
    Compose,
    Loader,
    Order,
    PadCrop,
    RandomErasing,
    RandomResizedCrop,
    ResizeCenterCrop,
    Transform,
    parse_policy,
)
from loader.arguments import check_load, check_threads
from loader.cache import ShardCache, default_cache
from loader.policies import Policy
from shard.dataset import Dataset, Split
from shard.errors import FeedlineError
from train.distributed import World


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """Input."""

    batch_size: int = 256
    """Global batch of one step: shared by all ranks and their micro-batches."""
    crop: Literal["random-resized", "pad"] = "random-resized"
    """Training crop: random-resized (ImageNet), or pad-and-shift of whole images (CIFAR)."""
    size: int = 224
    """Side of training images, pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """random-resized: least and greatest part of the image's area."""
    pad: int = 4
    """pad: pixels of padding on each side."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of the resize, in training and evaluation."""
    augment: str = "none"
    """Policy after the crop: rand-m9-mstd0.5-inc1 and the like, autoaugment, ta_wide, 3a, or none."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation changed by up to this share."""
    erase: float = 0.0
    """Probability of random erasing."""
    erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    """Paint erased boxes with the mean colour, a random one, or noise."""
    repeats: int = 1
    """Repeated augmentation: every sample comes so many times in a row."""
    eval_size: int = 224
    """Side of the centre crop in evaluation, pixels."""
    eval_resize: int = 256
    """Shorter side before that crop, pixels; as a flag, --eval-size alone keeps the crop's share of the image."""
    model_input: bool = False
    """Take size, eval_size, eval_resize and interpolation from the pretrained model, where no flag gives them."""
    train_split: str = "train"
    """Split to train on."""
    eval_split: str = "val"
    """Split to evaluate on after every epoch."""
    shuffle: Literal["global", "window"] = "global"
    """global: a permutation of all samples; window: a few shards at a time, for slow disks and object stores."""
    window: int = 4
    """Shards that each lane of the order "window" mixes."""
    lanes: int = 8
    """Lanes of the order "window"."""
    balance: float = 0.0
    """Draw rare classes more often: 0 as often as they are, 0.5 by the square root of their size, 1 all alike."""
    cache: Path | None = None
    """Folder on a local disk for the shards of a dataset at a URL; None: in ~/.cache."""
    cache_gb: float | None = None
    """Most that the cache may take, 10**9 bytes; None: 80 % of what is free there."""
    max_bad: int = 100
    """Undecodable samples that a rank may mask before the run ends with an error."""
    loader_backend: Literal["auto", "dali", "torch"] = "auto"
    """Decoder; auto: DALI on a GPU, torch on a CPU."""
    loader_threads: int | None = None
    """Decoding threads per rank; None: this rank's share of the machine's cores."""
    hw_decoder_load: float | None = None
    """Share of the JPEGs that a GPU's decoding engine gets, 0 to 1; None: found out, and 0 with --deterministic."""

    def __post_init__(self) -> None:
        """Reject values out of range, and an augmentation that there is not."""
        if self.batch_size < 1:
            raise FeedlineError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.cache_gb is not None and not self.cache_gb > 0:
            raise FeedlineError(f"cache_gb is {self.cache_gb}; it must be positive")
        check_threads(self.loader_threads, "loader_threads")
        check_load(self.hw_decoder_load)
        self.train_transform()
        self.order()

    def train_transform(self) -> Transform:
        """Augmentation of training images."""
        crop: Transform = (
            PadCrop(size=self.size, pad=self.pad, hflip=self.hflip)
            if self.crop == "pad"
            else RandomResizedCrop(
                size=self.size, scale=self.scale, hflip=self.hflip, interpolation=self.interpolation
            )
        )
        policies: list[Policy] = [] if self.augment == "none" else [parse_policy(self.augment)]
        if self.color_jitter:
            x = self.color_jitter
            policies.append(ColorJitter(brightness=x, contrast=x, saturation=x))
        erasing = RandomErasing(probability=self.erase, mode=self.erase_mode) if self.erase else None
        if not policies and erasing is None:
            return crop
        return Compose(crop, tuple(policies), erasing)

    def order(self) -> Order:
        """Order of the training samples."""
        return Order(
            shuffle=self.shuffle,
            window=self.window,
            lanes=self.lanes,
            repeats=self.repeats,
            balance=self.balance,
        )

    def shard_cache(self, dataset: Dataset) -> ShardCache | None:
        """Cache for a dataset at a URL, None for one on a disk."""
        if "://" not in str(dataset.root) and self.cache is None:
            return None
        cache = default_cache(self.cache)
        if self.cache_gb is not None:
            cache.limit_bytes = int(self.cache_gb * 1e9)
        return cache

    def eval_transform(self) -> Transform:
        """Crop of evaluation images."""
        return ResizeCenterCrop(
            size=self.eval_size, resize=self.eval_resize, interpolation=self.interpolation
        )


def micro_batch(batch_size: int, world_size: int, accumulate: int) -> int:
    """Samples per rank and micro-batch, such that the ranks' micro-batches make up the global batch.

    Raises:
        FeedlineError: it does not divide.
    """
    parts = world_size * accumulate
    if batch_size % parts:
        near = max(1, round(batch_size / parts)) * parts
        raise FeedlineError(
            f"batch_size {batch_size} does not divide into {world_size} rank(s) × accumulate {accumulate} = "
            f"{parts}; the nearest that does is {near}"
        )
    return batch_size // parts


def num_samples(config: InputConfig, dataset: Dataset) -> int:
    """Samples of the training split.

    Raises:
        FeedlineError: fewer than one global batch.
    """
    samples = len(dataset.split(config.train_split))
    if samples < config.batch_size:
        raise FeedlineError(
            f"split {config.train_split!r} has {samples} samples, fewer than batch_size "
            f"{config.batch_size}; lower --batch-size"
        )
    return samples


def first_images(config: InputConfig, dataset: Dataset, device: torch.device) -> torch.Tensor:
    """The first training images, at most 5,000, as they are: uint8 [N, H, W, 3]. The same on every rank."""
    count = min(5000, len(dataset.split(config.train_split)))
    # Trying out the share of a GPU's decoding engine takes longer than one batch, and ranks may find different ones,
    # whose pixels differ.
    config = replace(config, hw_decoder_load=config.hw_decoder_load or 0.0)
    transform = ResizeCenterCrop(size=config.size, resize=config.size, interpolation=config.interpolation)
    alone = World(device=device)
    with rank_loader(config, dataset, config.train_split, transform, alone, batch_size=count) as loader:
        batch = next(iter(loader))
    return batch.images[batch.valid]


def train_loader(
    config: InputConfig,
    dataset: Dataset,
    seed: int,
    accumulate: int,
    world: World,
    size_at: Callable[[int, int], int] | None = None,
) -> Loader:
    """Loader of this rank's micro-batches: shuffled; samples that fill no whole batch are left out.

    Args:
        config: input settings.
        dataset: where the split is.
        seed: of the order and the augmentation.
        accumulate: micro-batches per step.
        world: the ranks that share a global batch.
        size_at: side of the images at (epoch, samples consumed); None: the config's.

    Raises:
        FeedlineError: the global batch does not divide, or the split is smaller than it.
    """
    num_samples(config, dataset)
    return rank_loader(
        config,
        dataset,
        config.train_split,
        config.train_transform(),
        world,
        batch_size=micro_batch(config.batch_size, world.size, accumulate),
        shuffle=config.order(),
        drop_last=True,
        size_at=size_at,
        seed=seed,
    )


def eval_split(config: InputConfig, dataset: Dataset) -> Split:
    """The split that the run is evaluated on.

    Raises:
        FeedlineError: there is no such split, or its index is damaged.
    """
    try:
        return dataset.split(config.eval_split)
    except FeedlineError as error:
        if config.eval_split in dataset.split_names:
            raise
        raise FeedlineError(f"{error}; or give another --eval-split") from None


def eval_loader(config: InputConfig, dataset: Dataset, batch_size: int, world: World) -> Loader:
    """Loader of this rank's share of the evaluation split: every sample once, the last batch padded.

    Args:
        config: input settings.
        dataset: where the split is.
        batch_size: most samples per rank and step.
        world: the ranks that share the split.
    """
    split, share = config.eval_split, -(-len(eval_split(config, dataset)) // world.size)
    size = max(1, min(batch_size, share))
    return rank_loader(config, dataset, split, config.eval_transform(), world, batch_size=size)


def rank_loader(
    config: InputConfig,
    dataset: Dataset,
    split: str,
    transform: Transform,
    world: World,
    *,
    batch_size: int,
    **order: Any,
) -> Loader:
    """Loader of this rank's share of any split, with the decoder, threads and cache of `config`.

    Args:
        config: input settings.
        dataset: where the split is.
        split: its name.
        transform: of the images.
        world: the ranks that share the split.
        batch_size: samples per rank and step.
        order: the arguments of `Loader` that say which samples come when, and how large.
    """
    return Loader(
        dataset,
        split,
        transform,
        batch_size=batch_size,
        **order,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        backend=config.loader_backend,
        threads=config.loader_threads,
        hw_decoder_load=config.hw_decoder_load,
        local_world_size=world.local_size,
        max_bad=config.max_bad,
        cache=config.shard_cache(dataset),
    )
