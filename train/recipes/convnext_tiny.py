"""ConvNeXt-T on ImageNet-1k, 300 epochs.

Source: Liu et al., "A ConvNet for the 2020s", 2022; TRAINING.md and the defaults of main.py of
github.com/facebookresearch/ConvNeXt.
Command: torchrun --nproc-per-node 8 -m train --data imagenet --recipe convnext_tiny --accumulate 4
Expected time: not published; not measured here.
Expected accuracy: 82.1 % top-1 at 224 px (published); not measured here.

Different here: one mixing draw serves the global batch (there each GPU drew); colour jitter is left out, as timm
leaves it out beside RandAugment; random erasing paints before the normalisation.
"""

from __future__ import annotations

from train.config import Config
from train.ema import EmaConfig
from train.inputs import InputConfig
from train.losses import LossConfig
from train.mix import MixConfig
from train.model import ModelConfig
from train.optim import OptimConfig
from train.schedule import ScheduleConfig
from train.step import StepConfig


def convnext_tiny() -> Config:
    """ConvNeXt-T, 4,096 images a step, with an average of the weights."""
    return Config(
        recipe="convnext_tiny",
        input=InputConfig(
            batch_size=4096,
            size=224,
            interpolation="bicubic",
            augment="rand-m9-mstd0.5-inc1",
            erase=0.25,
            erase_mode="pixel",
            eval_size=224,
            eval_resize=256,
        ),
        model=ModelConfig(arch="convnext_tiny", drop_path=0.1),
        mix=MixConfig(mixup=0.8, cutmix=1.0),
        loss=LossConfig(label_smoothing=0.1),
        optim=OptimConfig(optimizer="adamw", lr=4e-3, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8),
        schedule=ScheduleConfig(duration="300ep", warmup="20ep", decay="cosine", final_lr=1e-6),
        ema=EmaConfig(ema_decay=0.9999),
        step=StepConfig(precision="bf16"),
    )
