"""A plain PyTorch training loop, written by hand: what `train` has to compute. Imports nothing of ours."""

from __future__ import annotations

import math

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

STEPS, WARMUP, BATCH, SIDE, CLASSES = 50, 10, 16, 32, 4
LR, MOMENTUM, WEIGHT_DECAY, SMOOTHING = 0.01, 0.9, 1e-3, 0.1
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def batch(step: int, rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of this rank of a global batch: uint8 [B, H, W, 3] and labels; the class shows in the brightness."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    noise = torch.randint(0, 128, (BATCH, SIDE, SIDE, 3), generator=generator)
    images = (noise + 30 * labels[:, None, None, None]).to(torch.uint8)
    return images[rank::size], labels[rank::size]


def lr(step: int) -> float:
    """Linear warm-up, then half a cosine."""
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    return LR * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


def train(rank: int = 0, size: int = 1) -> list[float]:
    """Train, and return this rank's loss of every step."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_convnext2", num_classes=CLASSES).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}], lr=LR, momentum=MOMENTUM
    )
    if size > 1:
        model = DistributedDataParallel(model)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    losses = []
    for step in range(STEPS):
        images, labels = batch(step, rank, size)
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
        loss = F.cross_entropy(model(pixels), labels, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        optimizer.step()
        losses.append(loss.item())
    return losses
