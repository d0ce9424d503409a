"""One optimiser step: normalise → mix → model → loss → gradients (averaged over ranks) → clip → update → average."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from shard.errors import FeedlineError
from train.distributed import World
from train.ema import Ema
from train.freeze import set_train_mode
from train.host_memory import keep_freed_memory
from train.losses import LossConfig, sample_losses, sample_weights
from train.mix import share, spare
from train.model import Normalized
from train.numerics import CompileWatch, autocast_dtype, set_numerics
from train.optim import ClipConfig, clip, set_lr

Forward = Callable[..., torch.Tensor]
_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """Training step."""

    precision: Literal["bf16", "fp16", "tf32", "fp32"] = "bf16"
    """Of matrix products and convolutions; weights and loss are fp32. fp16 and tf32 need a GPU."""
    compile: bool | None = None
    """torch.compile; None: on a GPU. Also --compile and --no-compile."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    """torch.compile's mode."""
    deterministic: bool = False
    """The same bits in every run on the same machine, at the price of speed."""
    accumulate: int = 1
    """Micro-batches per step and rank, for global batches that do not fit in memory."""
    sync_bn: bool = False
    """Batch norm over the batches of all ranks together; needs GPUs."""
    compress_grads: bool = False
    """Send gradients between ranks as bf16: half the traffic."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        if self.accumulate < 1:
            raise FeedlineError(f"accumulate is {self.accumulate}; it must be at least 1")


class TrainStep:
    """Forward, backward and update of one model on one rank.

    `forward_backward` is called `accumulate` times, with `last` for the last of them, then `update` once.

    Args:
        net: the model with normalisation.
        optimizer: of all its parameters, frozen ones too.
        config: how to compute.
        world: with whom.
        loss: of what.
        clipping: of gradients.
        ema: average that follows the weights.
        frozen: parameters that do not learn until `set_frozen(False)`.
        class_weights: float32 [classes] on the device; None: all samples weigh the same.

    Attributes:
        net: the bare model with normalisation; `net.model` is the timm model.
        optimizer: its optimiser.
        scaler: loss scaler, which does nothing but with fp16.
        ema: average of the weights, or None.
        watch: what torch.compile did.

    Raises:
        FeedlineError: the device cannot do what `config` asks for.
    """

    def __init__(
        self,
        net: Normalized,
        optimizer: torch.optim.Optimizer,
        config: StepConfig,
        world: World,
        *,
        loss: LossConfig | None = None,
        clipping: ClipConfig | None = None,
        ema: Ema | None = None,
        frozen: Sequence[nn.Parameter] = (),
        class_weights: torch.Tensor | None = None,
    ) -> None:
        device = world.device.type
        set_numerics(config.precision, world.device, deterministic=config.deterministic)
        if device == "cpu":
            keep_freed_memory()
        self.net, self.optimizer, self.world, self.config = net, optimizer, world, config
        self.loss, self.clipping, self.ema = loss or LossConfig(), clipping or ClipConfig(), ema
        self.scaler = torch.amp.GradScaler(device, enabled=config.precision == "fp16")
        self.watch = CompileWatch()
        self._compiled = device == "cuda" if config.compile is None else config.compile
        self._graphs = self._compiled and device == "cuda" and config.compile_mode in _CUDA_GRAPHS
        if self._graphs and config.accumulate > 1:
            # https://github.com/pytorch/pytorch/issues/169545
            raise FeedlineError(
                f"compile_mode is {config.compile_mode!r} and accumulate {config.accumulate}: CUDA graphs would "
                "overwrite gradients that are still needed; use compile_mode max-autotune-no-cudagraphs or default"
            )
        self._class_weights = class_weights
        self._weight = torch.zeros((), device=world.device)  # see `weight`
        self._frozen, self._is_frozen = list(frozen), False
        self._ddp: DistributedDataParallel | None = None
        self._forward: Forward = net
        self._bare = self._compile(net)
        self._averaged = None if ema is None else self._compile(ema.net)
        if self._frozen:
            self.set_frozen(True)
        else:
            self._connect()

    def set_frozen(self, frozen: bool) -> None:
        """Freeze the frozen parameters, or let them learn. Collective where it changes something."""
        if not self._frozen or frozen == self._is_frozen:
            return
        self._is_frozen = frozen
        for parameter in self._frozen:
            parameter.requires_grad_(not frozen)
            parameter.grad = None
        self._connect()
        if self.net.training:
            self.train()

    def train(self) -> None:
        """Put the model into training mode; norms that are frozen stay in evaluation."""
        set_train_mode(self.net)

    def _connect(self) -> None:
        """Wrap the model for the ranks, as its parameters now learn or do not, and compile it."""
        self._ddp = _wrap(
            self.net, self.world, self.config, static=self.config.accumulate == 1 and not self._compiled
        )
        # Around DDP, so that gradients travel while the backward pass still runs.
        self._forward = self._compile(self.net if self._ddp is None else self._ddp)
        self.watch.forget()

    def _compile(self, module: nn.Module) -> Forward:
        if not self._compiled:
            return module
        # Every image size is compiled on its own: shapes that may vary would be slower at all of them.
        compiled: Forward = torch.compile(module, dynamic=False, mode=self.config.compile_mode)
        return compiled

    def autocast(self) -> torch.autocast:
        """Context in which the forward pass runs."""
        dtype = autocast_dtype(self.config.precision)
        return torch.autocast(self.world.device.type, dtype, enabled=dtype != torch.float32)

    def forward_backward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        valid: torch.Tensor,
        *,
        last: bool = True,
        mix: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add one micro-batch's gradients; the last one also averages them over ranks.

        Args:
            images: uint8 [B, H, W, 3].
            labels: int64 [B], or soft targets [B, classes].
            valid: bool [B]; other rows, samples that could not be decoded, have no part in the loss.
            last: whether `update` follows.
            mix: mixing parameters from `train.mix.Mixing`; what would mix with a row that is not valid does not.

        Returns:
            This rank's share of the step's mean loss, a scalar on the device; the micro-batches' add up.
        """
        if mix is not None:
            mix = spare(mix, valid)
        self.watch.start()
        apart = self._ddp.no_sync() if self._ddp is not None and not last else contextlib.nullcontext()
        with apart:
            logits = self._logits(images, mix)
            kept = None if mix is None else share(mix)
            losses = sample_losses(logits.float(), labels, self.loss, kept, self._class_weights)
            # By all rows, valid or not: every sample weighs the same on any number of ranks and micro-batches.
            rows = len(valid) * self.config.accumulate
            loss = torch.where(valid, losses, 0).sum() / rows
            if self._class_weights is not None:
                weights = sample_weights(labels, self._class_weights, kept)
                self._weight += torch.where(valid, weights, 0).sum() / rows
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.watch.stop(tuple(images.shape))
        return loss.detach()

    def _logits(self, images: torch.Tensor, mix: torch.Tensor | None) -> torch.Tensor:
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with self.autocast():
            return self._forward(images) if mix is None else self._forward(images, mix)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of uint8 images [B, H, W, 3], without traffic between ranks."""
        return self._predict(self._bare, images)

    def predict_averaged(self, images: torch.Tensor) -> torch.Tensor:
        """The same by the averaged weights; there must be an average."""
        assert self._averaged is not None
        return self._predict(self._averaged, images)

    def _predict(self, forward: Forward, images: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            logits = forward(images)
        # A CUDA graph's next run overwrites what the last one gave, which flipping and averaging still need.
        return logits.clone() if self._graphs else logits

    def update(self, lr: float, step: int = 0) -> None:
        """Clip and apply the gradients with learning rate `lr`, clear them, and let the average follow.

        Args:
            lr: learning rate.
            step: number of this optimiser step in the whole run, from 1; for the average.
        """
        set_lr(self.optimizer, lr)
        self._divide_by_weight()
        if self.clipping.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            clip(self.net.model, self.clipping)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.net, step)

    def take_weight(self) -> torch.Tensor | None:
        """Mean weight of the rows of this step's micro-batches on this rank, before `update`; None: not weighted."""
        return None if self._class_weights is None else self._weight.clone()

    def _divide_by_weight(self) -> None:
        """Divide gradients by the mean weight of the whole step's rows, of all ranks; does not wait for the device."""
        if self._class_weights is None:
            return
        mean = self.world.sum_(self._weight) / self.world.size
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, mean.clamp(min=1e-12))  # 0 of a step without any valid row
        self._weight = torch.zeros_like(self._weight)


def _wrap(
    net: Normalized, world: World, config: StepConfig, *, static: bool
) -> DistributedDataParallel | None:
    if world.size == 1:
        return None
    # A static graph is for the plain case: DDP has it neither with no_sync nor inside torch.compile.
    ddp = DistributedDataParallel(
        net,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=static,
    )
    # Running statistics are rank 0's, taken over once before each evaluation. As an argument torch 2.14 warns of it.
    ddp.broadcast_buffers = False
    if config.compress_grads:
        ddp.register_comm_hook(None, bf16_compress_hook)
    return ddp
