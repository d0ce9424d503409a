"""The model: timm's, on uint8 images, with the normalisation inside."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

import train.models  # noqa: F401  registers our models with timm
from shard.errors import FeedlineError
from train.arguments import parse_arguments
from train.head import put_mlp
from train.hub import create_from_timm
from train.mix import blend
from train.models.blurpool import apply_blurpool
from train.pretrained import (
    FROM_TIMM,
    Color,
    has_timms_labels,
    known_to_timm,
    load_pretrained,
    own_input,
    reason,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Model."""

    arch: str = "resnet50"
    """Any model name of timm, or of train/models."""
    pretrained: Path | None = None
    """Weights to start from: a file (.pt, .pth, .safetensors), the folder of a run or of the Hugging Face hub, or timm:
    what timm has of them. A head of another size, or for other classes, is left out."""
    head: Literal["linear", "mlp"] = "linear"
    """Classifier: the model's own layer, or two with GELU and dropout between them."""
    head_hidden: int = 512
    """mlp: width between the two layers."""
    head_drop: float = 0.0
    """mlp: dropout between the two layers."""
    head_init: Literal["random", "probe"] = "random"
    """How a new linear head starts: at random, or as the linear probe of the pretrained features (LP-FT)."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    drop_path: float = 0.0
    """Stochastic depth: probability that the last block is left out; less for those before it."""
    model_args: str = ""
    """Further arguments of timm's model: name=value, separated by commas, such as init_values=1e-4."""
    blurpool: bool = False
    """Blur before every convolution with a stride but the first, as FFCV's recipes do."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    mean: Color | None = None
    """Mean of red, green, blue, for pixels in 0 … 1; None: what the pretrained weights were trained with, as a
    checkpoint or an export of ours, or timm says, else ImageNet's."""
    std: Color | None = None
    """Standard deviation of red, green, blue; None: as the mean."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        if self.std is not None and min(self.std) <= 0:
            raise FeedlineError(f"std is {self.std}; its values must be positive")
        if self.head_hidden < 1:
            raise FeedlineError(f"head_hidden is {self.head_hidden}; it must be at least 1")
        for name in ("drop_rate", "drop_path", "head_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise FeedlineError(f"{name} is {getattr(self, name)}; it must lie in 0 … 1, 1 excluded")
        parse_arguments("model_args", self.model_args)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `timm.create_model` beside the name."""
        given = {"drop_rate": self.drop_rate, "drop_path_rate": self.drop_path}
        return {k: v for k, v in given.items() if v} | parse_arguments("model_args", self.model_args)


def statistics(config: ModelConfig) -> tuple[Color, Color]:
    """Mean and standard deviation that the model's images are normalised with; see `ModelConfig.mean`."""
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    if config.pretrained is None:
        return config.mean or IMAGENET_DEFAULT_MEAN, config.std or IMAGENET_DEFAULT_STD
    own = own_input(config.arch, config.pretrained)
    return config.mean or own.mean, config.std or own.std


class Normalized(nn.Module):
    """`model` on uint8 images.

    The image batch is permuted to NCHW, which for NHWC memory is PyTorch's channels-last format and copies
    nothing; normalisation is one multiply-add, fused into its neighbours when compiled.

    Attributes:
        own_head: whether the pretrained weights brought the classifier with them.
    """

    own_head: bool
    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: nn.Module, mean: Color, std: Color) -> None:
        super().__init__()
        self.model, self.own_head = model, False
        deviation = torch.tensor(std).view(1, 3, 1, 1)
        # Not persistent: checkpoints hold nothing but the timm model.
        self.register_buffer("scale", 1 / (255 * deviation), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean).view(1, 3, 1, 1) / deviation, persistent=False)

    def forward(self, images: torch.Tensor, mix: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B, classes] of uint8 images [B, H, W, 3], mixed as `train.mix` says if it does."""
        logits: torch.Tensor = self.model(self.normalize(images, mix))
        return logits

    def normalize(self, images: torch.Tensor, mix: torch.Tensor | None = None) -> torch.Tensor:
        """Float images [B, 3, H, W], normalised, of uint8 [B, H, W, 3]."""
        pixels = images.permute(0, 3, 1, 2).float()
        if mix is not None:
            pixels = blend(pixels, mix)
        return torch.addcmul(self.shift, pixels, self.scale)


def make_model(
    config: ModelConfig,
    num_classes: int,
    device: torch.device,
    *,
    classes: Sequence[str] | None = None,
    resumed: bool = False,
) -> Normalized:
    """Make the model on `device`, its filters in channels-last order.

    The order is set here, before DDP sees the parameters: DDP lays out gradients as it finds them.

    Args:
        config: of the model.
        num_classes: its outputs.
        device: where it goes.
        classes: names of the outputs, where they are known: a pretrained head for others is left out.
        resumed: its weights come from a checkpoint later, not from `config.pretrained`.

    Raises:
        FeedlineError: unknown model, an argument that it does not take, or weights that are missing or do not fit.
    """
    if not timm.is_model(config.arch):
        near = difflib.get_close_matches(config.arch, timm.list_models(), n=1)
        raise FeedlineError(
            f"arch is {config.arch!r}, which neither timm nor train/models has"
            + (f"; did you mean {near[0]!r}?" if near else "; see timm.list_models()")
        )
    known_to_timm(config.arch)  # its tag, with or without weights
    pretrained = None if resumed else config.pretrained
    model = _create(config, num_classes, fetch=pretrained == FROM_TIMM)
    own_head = pretrained == FROM_TIMM and has_timms_labels(config.arch, classes or ())
    if pretrained == FROM_TIMM and not own_head:
        cast("Any", model).reset_classifier(
            num_classes
        )  # timm keeps one of the same size, whatever it is for
    if config.head == "mlp":
        put_mlp(model, config.arch, config.head_hidden, config.head_drop)
        own_head = False
    if pretrained is not None and pretrained != FROM_TIMM:
        own_head = load_pretrained(model, pretrained, classes)
    if config.blurpool and apply_blurpool(model) == 0:
        raise FeedlineError(
            f"blurpool is on, but {config.arch!r} has no convolution that it is for; leave it out"
        )
    if config.grad_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise FeedlineError(f"grad_checkpointing is on, but {config.arch!r} has none; leave it out")
        cast("Any", model).set_grad_checkpointing(True)
    net = Normalized(model, *statistics(config)).to(device)
    net.own_head = own_head
    return net.to(memory_format=torch.channels_last)


def _create(config: ModelConfig, num_classes: int, *, fetch: bool) -> nn.Module:
    arguments = config.arguments()
    try:
        if fetch:
            return create_from_timm(config.arch, num_classes, arguments)
        model: nn.Module = timm.create_model(config.arch, num_classes=num_classes, **arguments)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        # What timm's constructors say against their arguments.
        if not arguments:
            raise
        remedy = "; give --drop-path 0" if "drop_path_rate" in str(error) else ""
        raise FeedlineError(f"{config.arch!r} does not take {arguments}: {reason(error)}{remedy}") from error
    return model


def check_sizes(net: Normalized, arch: str, sides: dict[str, int]) -> None:
    """Try one black image of each size, in evaluation mode.

    Args:
        net: the model.
        arch: its name, for the error.
        sides: of images, pixels, by the flag that gives them.

    Raises:
        FeedlineError: the model does not take images of that size.
    """
    training = net.training
    net.eval()
    for name, side in sides.items():
        _try_size(net, arch, name, side)
    net.train(training)


@torch.no_grad()
def _try_size(net: Normalized, arch: str, name: str, side: int) -> None:
    try:
        net(torch.zeros((1, side, side, 3), dtype=torch.uint8, device=net.scale.device))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, ValueError, RuntimeError, IndexError) as error:
        raise FeedlineError(
            f"{arch!r} does not take images of {side} px ({name}): {reason(error)}; change the size, or the "
            "model's own by --model-args"
        ) from error
