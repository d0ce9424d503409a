"""The optimiser, its parameter groups, and the clipping of gradients."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.models import model_parameters
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.utils import dispatch_clip_grad
from torch import nn

from shard.errors import FeedlineError
from train.arguments import parse_arguments

# These can take the gradient scaler's verdict on the device; the others make it wait for the host each step.
_FUSED = ("sgd", "momentum", "nesterov", "adam", "adamw", "adagrad")
_OURS = ("params", "lr", "weight_decay", "momentum", "betas", "eps")  # not to be given in opt_args


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Optimiser. Norms and biases have no weight decay."""

    optimizer: str = "sgd"
    """timm's name: sgd (with Nesterov momentum), momentum (without), adamw, lamb, lion, muon, …"""
    lr: float = 0.1
    """Peak learning rate, for the given global batch; nothing scales it."""
    momentum: float = 0.9
    """Momentum, for optimisers that have one."""
    weight_decay: float = 5e-5
    """Weight decay of matrices and filters."""
    betas: tuple[float, float] | None = None
    """Decay of the two moments, for optimisers that have them; None: the optimiser's own."""
    eps: float | None = None
    """Added to denominators; None: the optimiser's own."""
    opt_args: str = ""
    """Further arguments of the optimiser: name=value, separated by commas, such as trust_clip=true."""
    layer_decay: float | None = None
    """Each layer learns at this share of the next one's rate (ELECTRA, BEiT); for fine-tuning."""
    bias_lr_scale: float = 1.0
    """Learning rate of the batch norms' biases, as a multiple."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        for name in ("lr", "momentum", "weight_decay", "bias_lr_scale"):
            value = getattr(self, name)
            if not value >= 0:
                raise FeedlineError(f"{name} is {value}; it must not be negative")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise FeedlineError(f"layer_decay is {self.layer_decay}; it must lie in 0 … 1, 0 excluded")
        if self.layer_decay is not None and self.bias_lr_scale != 1:
            raise FeedlineError("layer_decay and bias_lr_scale exclude each other; leave one at its default")
        parse_arguments("opt_args", self.opt_args)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Clipping of gradients."""

    clip_grad: float | None = None
    """Bound of the gradients, before the update; None: none."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """norm: of all gradients together; value: of each number; agc: each filter's, relative to its weights."""

    def __post_init__(self) -> None:
        """Reject a bound that stops everything."""
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise FeedlineError(f"clip_grad is {self.clip_grad}; it must be positive, or None")


def clip(model: nn.Module, config: ClipConfig) -> None:
    """Clip `model`'s gradients in place; does not wait for the device.

    "agc" is adaptive gradient clipping, Brock et al., "High-performance large-scale image recognition without
    normalization", 2021; it leaves the classifier alone, as timm does.
    """
    if config.clip_grad is not None:
        agc = config.clip_mode == "agc"
        dispatch_clip_grad(model_parameters(model, exclude_head=agc), config.clip_grad, mode=config.clip_mode)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Make timm's optimiser over `model`'s parameters; 1-d parameters and biases go without weight decay.

    Raises:
        FeedlineError: timm has no optimiser of this name, or it has no such argument; or the model has no batch norm
            whose biases `bias_lr_scale` could reach.
    """
    known = list_optimizers()
    if config.optimizer not in known:
        raise FeedlineError(
            f"optimizer is {config.optimizer!r}, which timm does not have"
            + _hint(config.optimizer, known, "see timm.optim.list_optimizers()")
        )
    options = _options(config)
    if next(model.parameters()).is_cuda and config.optimizer in _FUSED:
        options["fused"] = True
    groups = None if config.bias_lr_scale == 1 else _scaled_biases(config)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model,
        opt=config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        layer_decay=config.layer_decay,
        param_group_fn=groups,
        **options,
    )
    return optimizer


def _options(config: OptimConfig) -> dict[str, Any]:
    info = get_optimizer_info(config.optimizer)
    options: dict[str, Any] = {}
    for name, has in (("betas", info.has_betas), ("eps", info.has_eps)):
        value = getattr(config, name)
        if value is not None:
            if not has:
                raise FeedlineError(
                    f"{name} is {value}, but the optimizer {config.optimizer!r} has none; leave it out"
                )
            options[name] = value
    valid = [name for name in inspect.signature(info.opt_class).parameters if name not in _OURS]
    for name, value in parse_arguments("opt_args", config.opt_args).items():
        if name not in valid:
            raise FeedlineError(
                f"opt_args names {name!r}, which the optimizer {config.optimizer!r} does not take"
                + _hint(name, valid, f"it takes {', '.join(valid)}")
            )
        options[name] = value
    return options


def _scaled_biases(config: OptimConfig) -> Callable[[nn.Module], list[dict[str, Any]]]:
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        biases = {id(m.bias) for m in norms if m.bias is not None}
        if not biases:
            raise FeedlineError(
                f"bias_lr_scale is {config.bias_lr_scale}, but the model has no batch norm with a bias; leave it out"
            )
        exempt: set[str] = getattr(
            model, "no_weight_decay", set
        )()  # as in timm, position embeddings for instance
        learnt = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        rest = [(name, p) for name, p in learnt if id(p) not in biases]
        decayed = [p for name, p in rest if p.ndim > 1 and name not in exempt]
        plain = [p for name, p in rest if p.ndim <= 1 or name in exempt]
        made = [
            {
                "params": [p for _, p in learnt if id(p) in biases],
                "weight_decay": 0.0,
                "lr_scale": config.bias_lr_scale,
            },
            {"params": plain, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": config.weight_decay},
        ]
        return [group for group in made if group["params"]]

    return groups


def _hint(name: str, valid: list[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, valid, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; {otherwise}"


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, times its `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
