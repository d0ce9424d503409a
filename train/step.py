"""One optimiser step: normalise → model → loss → gradients (averaged over ranks) → update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from shard.errors import FeedlineError
from train.distributed import World
from train.model import Normalized
from train.optim import set_lr

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """Training step."""

    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of matrix products and convolutions (autocast); weights and loss are fp32. fp16 needs a GPU."""
    compile: bool | None = None
    """torch.compile; None: on a GPU. Also --compile and --no-compile."""
    accumulate: int = 1
    """Micro-batches per step and rank, for global batches that do not fit in memory."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        if not 0 <= self.label_smoothing < 1:
            raise FeedlineError(
                f"label_smoothing is {self.label_smoothing}; it must lie in 0 … 1, 1 excluded"
            )
        if self.accumulate < 1:
            raise FeedlineError(f"accumulate is {self.accumulate}; it must be at least 1")


class TrainStep:
    """Forward, backward and update of one model on one rank.

    `forward_backward` is called `accumulate` times, with `last` for the last of them, then `update` once.

    Attributes:
        net: the bare model with normalisation; `net.model` is the timm model.
        optimizer: its optimiser.
        scaler: loss scaler, which does nothing but with fp16.
    """

    def __init__(
        self, net: Normalized, optimizer: torch.optim.Optimizer, config: StepConfig, world: World
    ) -> None:
        device = world.device.type
        if config.precision == "fp16" and device == "cpu":
            raise FeedlineError("precision is 'fp16', which needs a GPU; on a CPU use 'bf16' or 'fp32'")
        self.net, self.optimizer, self.world, self.config = net, optimizer, world, config
        self.scaler = torch.amp.GradScaler(device, enabled=config.precision == "fp16")
        compiled = device == "cuda" if config.compile is None else config.compile
        self._ddp = _wrap(net, world, static=config.accumulate == 1 and not compiled)
        self._forward: Callable[[torch.Tensor], torch.Tensor] = net if self._ddp is None else self._ddp
        self._bare: Callable[[torch.Tensor], torch.Tensor] = net
        if compiled:
            # Around DDP, so that gradients travel while the backward pass still runs. Shapes never change.
            self._forward = torch.compile(self._forward, dynamic=False)
            self._bare = torch.compile(net, dynamic=False)

    def autocast(self) -> torch.autocast:
        """Context in which the forward pass runs."""
        dtype = _DTYPES[self.config.precision]
        return torch.autocast(self.world.device.type, dtype, enabled=dtype != torch.float32)

    def forward_backward(
        self, images: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor, *, last: bool = True
    ) -> torch.Tensor:
        """Add one micro-batch's gradients; the last one also averages them over ranks.

        Args:
            images: uint8 [B, H, W, 3].
            labels: int64 [B].
            valid: bool [B]; other rows, samples that could not be decoded, have no part in the loss.
            last: whether `update` follows.

        Returns:
            This rank's share of the step's mean loss, a scalar on the device; the micro-batches' add up.
        """
        apart = self._ddp.no_sync() if self._ddp is not None and not last else contextlib.nullcontext()
        with apart:
            with self.autocast():
                logits = self._forward(images)
            losses = F.cross_entropy(
                logits.float(), labels, label_smoothing=self.config.label_smoothing, reduction="none"
            )
            loss = (losses * valid).sum() / valid.sum().clamp(min=1) / self.config.accumulate
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of uint8 images [B, H, W, 3], without traffic between ranks."""
        with self.autocast():
            return self._bare(images)

    def update(self, lr: float) -> None:
        """Apply the gradients with learning rate `lr` and clear them."""
        set_lr(self.optimizer, lr)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def _wrap(net: Normalized, world: World, *, static: bool) -> DistributedDataParallel | None:
    if world.size == 1:
        return None
    # A static graph is for the plain case: DDP has it neither with no_sync nor inside torch.compile.
    return DistributedDataParallel(
        net,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        broadcast_buffers=False,  # running statistics are rank 0's, taken over once before each evaluation
        gradient_as_bucket_view=True,
        static_graph=static,
    )
