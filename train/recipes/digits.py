"""Scikit-learn's 1,797 scanned digits: the example that `make demo` runs.

Source: none; a small residual network and the usual triangular schedule.
Command: python -m train --data DATASET --recipe digits (DATASET built from examples/digits.py's folders)
Expected time: 13 s on 2 idle CPU cores.
Expected accuracy: 99.7 % top-1 of the 360 digits held out (one run, seed 0).
"""

from __future__ import annotations

from train.config import Config
from train.inputs import InputConfig
from train.losses import LossConfig
from train.model import ModelConfig
from train.optim import OptimConfig
from train.schedule import ScheduleConfig
from train.step import StepConfig


def digits() -> Config:
    """Handwritten digits, 32 × 32: seconds on any machine."""
    return Config(
        recipe="digits",
        input=InputConfig(batch_size=64, crop="pad", size=32, pad=3, hflip=0.0, eval_size=32, eval_resize=32),
        model=ModelConfig(arch="cifar_resnet9", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        optim=OptimConfig(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(duration="8ep", warmup="2ep", decay="linear"),
        loss=LossConfig(label_smoothing=0.1),
        step=StepConfig(precision="fp32"),
        log_every=10,
    )
