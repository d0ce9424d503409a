"""ResNet-50 on ImageNet-1k by procedures A1, A2 and A3.

Source: Wightman, Touvron, Jégou, "ResNet strikes back: an improved training procedure in timm", 2021, table 2.
Command: torchrun --nproc-per-node 4 -m train --data imagenet --recipe resnet50_a2
Expected time: A1 110 h, A2 55 h, A3 15 h on 4 × V100 (published); not measured here.
Expected accuracy: A1 80.4 %, A2 79.8 %, A3 78.1 % top-1 (published); not measured here.

Not in the paper, taken from timm's training arguments of its weights: threshold 0.2 of the binary cross-entropy,
the warm-up from 1e-4 to the peak, the final learning rate of 1e-6, decay counted from step 0, "inc1", three repeats.
Different here: the learning rate moves every step (timm's moved every epoch); one mixing draw serves the global
batch (there each of 4 GPUs drew); bicubic resizing (there bilinear or bicubic at random).
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Config
from train.inputs import InputConfig
from train.losses import LossConfig
from train.mix import MixConfig
from train.model import ModelConfig
from train.optim import OptimConfig
from train.schedule import ScheduleConfig
from train.step import StepConfig


def resnet50_a1() -> Config:
    """ResNet strikes back, procedure A1: 600 epochs, the most accurate."""
    config = resnet50_a2()
    return replace(
        config,
        recipe="resnet50_a1",
        mix=replace(config.mix, mixup=0.2),
        loss=replace(config.loss, label_smoothing=0.1),
        optim=replace(config.optim, weight_decay=0.01),
        schedule=replace(config.schedule, duration="600ep"),
    )


def resnet50_a2() -> Config:
    """ResNet strikes back, procedure A2: 300 epochs."""
    return Config(
        recipe="resnet50_a2",
        input=InputConfig(
            batch_size=2048,
            size=224,
            interpolation="bicubic",
            augment="rand-m7-mstd0.5-inc1",
            repeats=3,
            eval_size=224,
            eval_resize=235,  # 224 / 0.95, rounded down as timm does
        ),
        model=ModelConfig(arch="resnet50", drop_path=0.05),
        mix=MixConfig(mixup=0.1, cutmix=1.0),
        loss=LossConfig(loss="bce", bce_threshold=0.2),
        optim=OptimConfig(optimizer="lamb", lr=5e-3, weight_decay=0.02),
        schedule=ScheduleConfig(
            duration="300ep",
            warmup="5ep",
            warmup_lr=1e-4,
            decay="cosine",
            decay_from_start=True,
            final_lr=1e-6,
        ),
        step=StepConfig(precision="bf16"),
    )


def resnet50_a3() -> Config:
    """ResNet strikes back, procedure A3: 100 epochs at 160 px, the quickest."""
    config = resnet50_a2()
    return replace(
        config,
        recipe="resnet50_a3",
        input=replace(config.input, size=160, augment="rand-m6-mstd0.5-inc1", repeats=1),
        model=replace(config.model, drop_path=0.0),
        optim=replace(config.optim, lr=8e-3),
        schedule=replace(config.schedule, duration="100ep"),
    )
