"""The model: timm's, on uint8 images, with the normalisation inside."""

from __future__ import annotations

import difflib
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import load_state_dict
from torch import nn

import train.models  # noqa: F401  registers our models with timm
from shard.errors import FeedlineError
from train import checkpoint
from train.arguments import parse_arguments
from train.checkpoint import DamagedError, verify
from train.mix import blend
from train.models.blurpool import apply_blurpool

FROM_TIMM = Path("timm")
Color = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Model."""

    arch: str = "resnet50"
    """Any model name of timm, or of train/models."""
    pretrained: Path | None = None
    """Weights to start from (.pt, .pth or .safetensors), or timm: what timm has of them; a head of another size is
    left out."""
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
    """Mean of red, green, blue, for pixels in 0 … 1; None: what the pretrained weights were trained with, where timm or
    a checkpoint of ours says so, else ImageNet's."""
    std: Color | None = None
    """Standard deviation of red, green, blue; None: as the mean."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        if self.std is not None and min(self.std) <= 0:
            raise FeedlineError(f"std is {self.std}; its values must be positive")
        for name in ("drop_rate", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise FeedlineError(f"{name} is {getattr(self, name)}; it must lie in 0 … 1, 1 excluded")
        parse_arguments("model_args", self.model_args)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `timm.create_model` beside the name."""
        given = {"drop_rate": self.drop_rate, "drop_path_rate": self.drop_path}
        return {k: v for k, v in given.items() if v} | parse_arguments("model_args", self.model_args)


def statistics(config: ModelConfig) -> tuple[Color, Color]:
    """Mean and standard deviation that the model's images are normalised with; see `ModelConfig.mean`."""
    own: dict[str, Any] = {}
    if config.pretrained == FROM_TIMM:
        found = timm.get_pretrained_cfg(config.arch)
        own = {"mean": found.mean, "std": found.std} if found is not None else {}
    elif config.pretrained is not None and zipfile.is_zipfile(config.pretrained):
        own = checkpoint.model_config(config.pretrained)
    mean = config.mean or own.get("mean") or IMAGENET_DEFAULT_MEAN
    std = config.std or own.get("std") or IMAGENET_DEFAULT_STD
    return tuple(mean), tuple(std)


class Normalized(nn.Module):
    """`model` on uint8 images.

    The image batch is permuted to NCHW, which for NHWC memory is PyTorch's channels-last format and copies
    nothing; normalisation is one multiply-add, fused into its neighbours when compiled.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: nn.Module, mean: Color, std: Color) -> None:
        super().__init__()
        self.model = model
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
    config: ModelConfig, num_classes: int, device: torch.device, *, resumed: bool = False
) -> Normalized:
    """Make the model on `device`, its filters in channels-last order.

    The order is set here, before DDP sees the parameters: DDP lays out gradients as it finds them.

    Args:
        config: of the model.
        num_classes: its outputs.
        device: where it goes.
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
    model = _create(config, num_classes, fetch=config.pretrained == FROM_TIMM and not resumed)
    if config.pretrained is not None and config.pretrained != FROM_TIMM and not resumed:
        load_pretrained(model, config.pretrained)
    if config.blurpool and apply_blurpool(model) == 0:
        raise FeedlineError(
            f"blurpool is on, but {config.arch!r} has no convolution that it is for; leave it out"
        )
    if config.grad_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise FeedlineError(f"grad_checkpointing is on, but {config.arch!r} has none; leave it out")
        cast("Any", model).set_grad_checkpointing(True)
    net = Normalized(model, *statistics(config)).to(device)
    return net.to(memory_format=torch.channels_last)


def _create(config: ModelConfig, num_classes: int, *, fetch: bool) -> nn.Module:
    arguments = config.arguments()
    try:
        model: nn.Module = timm.create_model(
            config.arch, pretrained=fetch, num_classes=num_classes, **arguments
        )
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        # What timm's constructors say against their arguments; with `fetch`: no network, or no such weights.
        if isinstance(error, TypeError) or not fetch:
            if not arguments:
                raise
            raise FeedlineError(f"{config.arch!r} does not take {arguments}: {_reason(error)}") from error
        raise FeedlineError(
            f"cannot get timm's weights of {config.arch!r}: {_reason(error)}; give --pretrained a file"
        ) from error
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
            f"{arch!r} does not take images of {side} px ({name}): {_reason(error)}; change the size, or the "
            "model's own by --model-args"
        ) from error


def _reason(error: BaseException) -> str:
    """First line of what an exception says."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def load_pretrained(model: nn.Module, path: Path) -> None:
    """Load weights into a bare timm model; a classifier head of another size keeps its random start.

    Raises:
        FeedlineError: no such file, or tensors other than the head's are missing, unknown or of other sizes.
    """
    if not path.is_file():
        raise FeedlineError(f"pretrained is {str(path)!r}, which is not a file")
    weights = _read_weights(path)
    mine = model.state_dict()
    resized = {k for k, v in weights.items() if k in mine and v.shape != mine[k].shape}
    head = head_parameters(model)
    if resized and resized <= head:
        print(
            f"{path}: its head is of another size and is left out ({', '.join(sorted(resized))})",
            file=sys.stderr,
        )
        weights = {k: v for k, v in weights.items() if k not in head}
        resized = set()
    unknown, missing = weights.keys() - mine.keys(), mine.keys() - weights.keys() - head
    if resized or unknown or missing:
        raise FeedlineError(
            f"{path} does not fit the model: {_misfit(weights, mine, resized, unknown, missing)}"
        )
    model.load_state_dict(weights, strict=False)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from any file that timm reads.

    Raises:
        FeedlineError: damaged, or something else.
    """
    try:
        if zipfile.is_zipfile(path):
            verify(path)
        weights = load_state_dict(str(path))
    except DamagedError as error:
        raise FeedlineError(f"pretrained: {error}") from error
    # timm hands on whatever torch, pickle and safetensors say about bytes that they cannot read.
    except Exception as error:
        first = _reason(error)
        raise FeedlineError(
            f"pretrained is {str(path)!r}, which cannot be read: it is damaged or no file of weights ({first})"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise FeedlineError(f"pretrained is {str(path)!r}, which is not a state dict: names with tensors")
    return weights


def _misfit(
    weights: dict[str, torch.Tensor],
    mine: dict[str, torch.Tensor],
    resized: set[str],
    unknown: set[str],
    missing: set[str],
) -> str:
    """What of the weights is wrong, by kind, each with its first name."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} of its {len(mine)} tensors are missing, the first {min(missing)!r}")
    if unknown:
        near = difflib.get_close_matches(min(unknown), missing or mine, n=1)
        parts.append(
            f"{len(unknown)} are unknown to it, the first {min(unknown)!r}"
            + (f" (nearest: {near[0]!r})" if near else "")
        )
    if resized:
        name = min(resized)
        shapes = f"{tuple(weights[name].shape)} instead of {tuple(mine[name].shape)}"
        parts.append(f"{len(resized)} are of another shape, the first {name!r}: {shapes}")
    return "; ".join(parts) + "; is arch the model that these weights are of?"


def head_parameters(model: nn.Module) -> set[str]:
    """Names of the classifier's parameters; none where timm does not know it."""
    classifier = getattr(model, "get_classifier", lambda: None)()
    if not isinstance(classifier, nn.Module):
        return set()
    own = {id(p) for p in classifier.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in own}
