"""Length, model, optimiser and step of a run as its configuration says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from timm.layers import convert_sync_batchnorm

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.class_weights import class_weights
from train.config import Config
from train.distributed import World
from train.ema import make_ema
from train.freeze import frozen_parameters
from train.inputs import num_samples
from train.labels import fitted
from train.model import Normalized, check_sizes, make_model
from train.norms import check_norms
from train.numerics import prepare_compilation, set_numerics
from train.optim import make_optimizer
from train.schedule import Length, run_length
from train.step import TrainStep


def length_of(config: Config, dataset: Dataset) -> Length:
    """Length of the run that `config` describes."""
    return run_length(config.schedule, num_samples(config.input, dataset), config.input.batch_size)


def image_sizes(config: Config) -> dict[str, int]:
    """Sides of the images that the model will see, by the flags that give them."""
    sides = {"--size": config.input.size, "--eval-size": config.input.eval_size}
    start = config.resolution.start_size
    return sides if start is None else {**sides, "--start-size": start}


@runtime_checkable
class StartsFromImages(Protocol):
    """A model whose first weights are made of the statistics of training images."""

    def init_from_images(self, images: torch.Tensor) -> None:
        """Start from normalised images [N, 3, H, W]."""
        ...


def make_step(
    config: Config,
    num_classes: int,
    world: World,
    *,
    dataset: Dataset | None = None,
    sizes: int = 1,
    first_images: Callable[[], torch.Tensor] | None = None,
    resumed: bool = False,
) -> TrainStep:
    """Make model, optimiser and step as `config` says, the same weights on every rank.

    Args:
        config: of the run.
        num_classes: outputs of the model.
        world: the ranks.
        dataset: what is trained on, for names and weights of its classes, and for the length of the run; None: weights
            are all alike, and what is frozen stays frozen.
        sizes: how many image sizes the training will see.
        first_images: gives training images, uint8 [N, H, W, 3], to a model that `StartsFromImages`;
            None: it starts without.
        resumed: whether weights of a checkpoint follow; pretrained ones are not looked for then.

    Raises:
        FeedlineError: model, optimiser or step cannot be made.
    """
    if dataset is not None:
        fitted(config, dataset, ("loss", "stop_metric"))  # raises where it is not
    torch.manual_seed(config.seed)
    prepare_compilation(sizes)
    # Before the sizes are tried: at its first product cuBLAS takes from the environment whether it is deterministic.
    set_numerics(config.step.precision, world.device, deterministic=config.step.deterministic)
    classes = None if dataset is None else dataset.classes
    net = make_model(config.model, num_classes, world.device, classes=classes, resumed=resumed)
    check_sizes(net, config.model.arch, image_sizes(config))
    if first_images is not None and isinstance(net.model, StartsFromImages):
        with torch.no_grad():
            net.model.init_from_images(net.normalize(first_images()))
    if config.step.sync_bn:
        _synchronize_norms(net, world)
    frozen = frozen_parameters(net.model, config.freeze)
    length = None if dataset is None else length_of(config, dataset)
    check_norms(net, config, length, world, frozen)
    optimizer = make_optimizer(net.model, config.optim)
    step = TrainStep(
        net,
        optimizer,
        config.step,
        world,
        loss=config.loss,
        clipping=config.clip,
        ema=make_ema(net, config.ema),
        frozen=frozen,
        class_weights=None
        if dataset is None
        else class_weights(config.loss.class_weights, dataset, config.input.train_split, world.device),
    )
    torch.manual_seed(config.seed + world.rank)  # dropout should differ between ranks
    return step


def _synchronize_norms(net: Normalized, world: World) -> None:
    if world.device.type != "cuda":
        raise FeedlineError("sync_bn is on, which torch has for GPUs only; leave it out on a CPU")
    if world.size > 1:  # alone there is nothing to share
        net.model = convert_sync_batchnorm(net.model)
