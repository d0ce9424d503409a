"""The two loaders of a run: training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loader import Loader, PadCrop, RandomResizedCrop, ResizeCenterCrop, Transform
from loader.resolve import usable_cores
from shard.dataset import Dataset
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
    eval_size: int = 224
    """Side of the centre crop in evaluation, pixels."""
    eval_resize: int = 256
    """Shorter side before that crop, pixels."""
    train_split: str = "train"
    """Split to train on."""
    eval_split: str = "val"
    """Split to evaluate on after every epoch."""
    loader_backend: Literal["auto", "dali", "torch"] = "auto"
    """Decoder; auto: DALI on a GPU, torch on a CPU."""
    loader_threads: int | None = None
    """Decoding threads per rank; None: this rank's share of the machine's cores."""

    def __post_init__(self) -> None:
        """Reject an empty batch."""
        if self.batch_size < 1:
            raise FeedlineError(f"batch_size is {self.batch_size}; it must be at least 1")

    def train_transform(self) -> Transform:
        """Augmentation of training images."""
        if self.crop == "pad":
            return PadCrop(size=self.size, pad=self.pad, hflip=self.hflip)
        return RandomResizedCrop(size=self.size, scale=self.scale, hflip=self.hflip)


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


def train_loader(config: InputConfig, dataset: Dataset, seed: int, accumulate: int, world: World) -> Loader:
    """Loader of this rank's micro-batches: shuffled; samples that fill no whole batch are left out.

    Raises:
        FeedlineError: the global batch does not divide, or the split is smaller than it.
    """
    samples = len(dataset.split(config.train_split))
    if samples < config.batch_size:
        raise FeedlineError(
            f"split {config.train_split!r} has {samples} samples, fewer than batch_size "
            f"{config.batch_size}; lower --batch-size"
        )
    return Loader(
        dataset,
        config.train_split,
        config.train_transform(),
        batch_size=micro_batch(config.batch_size, world.size, accumulate),
        shuffle=True,
        drop_last=True,
        seed=seed,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        backend=config.loader_backend,
        threads=_threads(config, world),
    )


def eval_loader(config: InputConfig, dataset: Dataset, batch_size: int, world: World) -> Loader:
    """Loader of this rank's share of the evaluation split: every sample once, the last batch padded.

    Args:
        config: input settings.
        dataset: where the split is.
        batch_size: most samples per rank and step.
        world: the ranks that share the split.
    """
    share = -(-len(dataset.split(config.eval_split)) // world.size)
    return Loader(
        dataset,
        config.eval_split,
        ResizeCenterCrop(size=config.eval_size, resize=config.eval_resize),
        batch_size=max(1, min(batch_size, share)),
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        backend=config.loader_backend,
        threads=_threads(config, world),
    )


def _threads(config: InputConfig, world: World) -> int:
    return config.loader_threads or max(1, usable_cores() // world.local_size)
