"""Batch norms that a training with one image per rank and micro-batch cannot have.

Over a map larger than 1 × 1 the variance of one image is that of its pixels. Over a 1 × 1 map there is one value per
channel, which has none, and torch refuses.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

import torch
from torch import nn

from shard.errors import FeedlineError
from train.config import Config
from train.distributed import World
from train.inputs import micro_batch
from train.model import Normalized
from train.schedule import Length


@torch.no_grad()
def lone_norms(net: Normalized, side: int, frozen: Collection[nn.Parameter] = ()) -> list[str]:
    """Names of the batch norms that see one value per channel of one image.

    Args:
        net: the model; one black image runs through it in evaluation mode.
        side: of the image, pixels.
        frozen: parameters that never learn; norms without others stay in evaluation, as `train.freeze` says.
    """
    never, found = set(map(id, frozen)), list[str]()
    training = net.training
    with ExitStack() as stack:
        for name, module in net.model.named_modules():
            own = list(module.parameters(recurse=False))
            stays = bool(own) and all(id(p) in never or not p.requires_grad for p in own)
            synchronized = isinstance(module, nn.SyncBatchNorm)  # other ranks' images count, too
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not stays and not synchronized:

                def look(_: nn.Module, given: tuple[torch.Tensor], name: str = name) -> None:
                    if given[0].numel() == given[0].shape[1]:
                        found.append(name)

                handle = module.register_forward_pre_hook(look)
                stack.callback(handle.remove)
        net.eval()
        net(torch.zeros((1, side, side, 3), dtype=torch.uint8, device=net.scale.device))
    net.train(training)
    return found


def check_norms(
    net: Normalized, config: Config, length: Length | None, world: World, frozen: Collection[nn.Parameter]
) -> None:
    """Find out before the training whether its batches are too small for the model's batch norms.

    Args:
        net: the model, before anything is frozen.
        config: of the run.
        length: of the run; None: what is frozen stays frozen.
        world: the ranks.
        frozen: parameters that do not learn at first.

    Raises:
        FeedlineError: they are.
    """
    given, accumulate = config.input, config.step.accumulate
    if micro_batch(given.batch_size, world.size, accumulate) > 1:
        return
    always = length is None or length.of(config.freeze.freeze_for, "freeze_for") >= length.steps
    start = config.resolution.start_size
    side = min(given.size, start or given.size)  # the smallest images have the smallest maps
    if names := lone_norms(net, side, frozen if always else ()):
        raise FeedlineError(
            f"batch_size is {given.batch_size}, which is 1 image for each of {world.size} rank(s) × accumulate "
            f"{accumulate}: of {side} px it leaves batch norm {names[0]!r} of {config.model.arch!r} one value per "
            f"channel, and no variance; give --batch-size {2 * world.size * accumulate} or more"
        )
