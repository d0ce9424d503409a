"""CIFAR-10 on one GPU, seconds.

Source: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024; hyper-parameters of his airbench94.py.
Command: python -m train --data cifar10 --recipe cifar10_gpu
Expected time: 3.83 s on an A100, images in GPU memory (published); not measured here, where JPEGs are decoded.
Expected accuracy: 94.0 % top-1, mean of 1,000 runs (published); not measured here.

airbench's learning rate 11.5 and weight decay 0.0153 are per 1,024 examples and decoupled from the momentum 0.85; for
a mean loss they are 11.5 / (1 + 1 / (1 - 0.85)) = 1.5 and 0.0153 / 11.5 = 1.33e-3.
Left out: Lookahead, flips that alternate between epochs (here random), reflecting borders (here black), translation
at test time, freezing of the whitening layer's bias after 3 epochs, weight decay of the norms' biases.
"""

from __future__ import annotations

from train.config import Config
from train.evaluate import EvalConfig
from train.inputs import InputConfig
from train.losses import LossConfig
from train.model import ModelConfig
from train.optim import OptimConfig
from train.schedule import ScheduleConfig
from train.step import StepConfig


def cifar10_gpu() -> Config:
    """CIFAR-10 with airbench94's network."""
    lr = 11.5 / (1 + 1 / (1 - 0.85))
    return Config(
        recipe="cifar10_gpu",
        input=InputConfig(
            batch_size=1024, crop="pad", size=32, pad=2, eval_size=32, eval_resize=32, eval_split="test"
        ),
        model=ModelConfig(arch="airbench94", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        loss=LossConfig(label_smoothing=0.2),
        optim=OptimConfig(
            optimizer="sgd", lr=lr, momentum=0.85, weight_decay=0.0153 / 11.5, bias_lr_scale=64.0
        ),
        schedule=ScheduleConfig(
            duration="9.9ep", warmup="23%", warmup_lr=0.2 * lr, decay="linear", final_lr=0.07 * lr
        ),
        step=StepConfig(precision="fp16"),
        evaluation=EvalConfig(flip_tta=True),
        log_every=48,
    )
