"""ViT-S/16 on ImageNet-1k by the procedure of DeiT III, 800 epochs.

Source: Touvron, Cord, Jégou, "DeiT III: Revenge of the ViT", 2022; command and code of
github.com/facebookresearch/deit (README_revenge.md, main.py, engine.py, augment.py).
Command: torchrun --nproc-per-node 8 -m train --data imagenet --recipe deit3_small
Expected time: not published for ViT-S; not measured here.
Expected accuracy: 81.4 % top-1 at 224 px (published); not measured here.

Different here: the learning rate moves every step (there every epoch); stochastic depth grows with the depth up to
0.05 (there 0.05 in every block); one mixing draw serves the global batch (there each of 8 GPUs drew); timm's LAMB
(there apex's fused one); the learning rate's floor of 1e-5 is DeiT's default, not named in the command.
"""

from __future__ import annotations

from train.config import Config
from train.inputs import InputConfig
from train.losses import LossConfig
from train.mix import MixConfig
from train.model import ModelConfig
from train.optim import OptimConfig
from train.schedule import ScheduleConfig
from train.step import StepConfig


def deit3_small() -> Config:
    """ViT-S after DeiT III: LAMB, 3-Augment, binary cross-entropy."""
    return Config(
        recipe="deit3_small",
        input=InputConfig(
            batch_size=2048,
            size=224,
            interpolation="bicubic",
            augment="3a",
            color_jitter=0.3,
            repeats=3,
            eval_size=224,
            eval_resize=224,  # --eval-crop-ratio 1.0
        ),
        model=ModelConfig(arch="deit3_small_patch16_224", drop_path=0.05, model_args="init_values=1e-4"),
        mix=MixConfig(mixup=0.8, cutmix=1.0),
        # Every class with any share in a mixed image counts as 1.
        loss=LossConfig(loss="bce", bce_threshold=0.0),
        optim=OptimConfig(optimizer="lamb", lr=4e-3, weight_decay=0.05, eps=1e-8),
        schedule=ScheduleConfig(
            duration="800ep",
            warmup="5ep",
            warmup_lr=1e-6,
            decay="cosine",
            decay_from_start=True,
            final_lr=1e-5,
        ),
        step=StepConfig(precision="bf16"),
    )
