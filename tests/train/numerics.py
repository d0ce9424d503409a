"""Run by test_reference.py, alone or as two ranks: our step and the reference loop on the same data, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import reference as ref
import torch

from train.build import make_step
from train.config import Config
from train.distributed import World, connect
from train.losses import LossConfig
from train.model import ModelConfig
from train.optim import OptimConfig
from train.schedule import ScheduleConfig, lr_at, run_length
from train.step import StepConfig


def ours(world: World) -> list[float]:
    """Our losses, of this rank."""
    config = Config(
        model=ModelConfig(arch="test_convnext2", mean=ref.MEAN, std=ref.STD),
        loss=LossConfig(label_smoothing=ref.SMOOTHING),
        optim=OptimConfig(
            optimizer="momentum", lr=ref.LR, momentum=ref.MOMENTUM, weight_decay=ref.WEIGHT_DECAY
        ),
        schedule=ScheduleConfig(duration=f"{ref.STEPS}st", warmup=f"{ref.WARMUP}st"),
        step=StepConfig(precision="fp32"),
    )
    step = make_step(config, ref.CLASSES, world)
    step.train()
    length = run_length(config.schedule, 10 * ref.BATCH, ref.BATCH)
    losses = []
    for number in range(ref.STEPS):
        images, labels = ref.batch(number, world.rank, world.size)
        valid = torch.ones(len(labels), dtype=torch.bool)
        losses.append(step.forward_backward(images, labels, valid).item())
        step.update(lr_at(number, config.optim.lr, config.schedule, length))
    return losses


def main(out: Path) -> None:
    """Write both, each rank's."""
    torch.set_num_threads(1)
    with connect("cpu") as world:
        torch.set_num_threads(1)
        found = world.gather((ours(world), ref.train(world.rank, world.size)))
        if world.is_main:
            out.write_text(json.dumps({"ours": [a for a, _ in found], "reference": [b for _, b in found]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
