"""CIFAR-10 on two CPU cores.

Source: after K. Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024 (triangular schedule, Nesterov SGD, label
smoothing), made smaller for a CPU.
Command: torchrun --nproc-per-node 2 -m train --data cifar10 --recipe cifar10_cpu
Expected time: 16 minutes on 2 CPU cores (AMX bf16), a little shared with other programs; 24 and 28 with more of them.
Expected accuracy: 88.7 % top-1 (89.01, 88.52, 88.59; deviation 0.27) of seeds 0, 1, 2 with 2 processes; the averaged weights
88.6 % (88.85, 88.48, 88.56; deviation 0.19) with a lower loss (0.402, 0.401, 0.402 against 0.405, 0.405, 0.407).
"""

from __future__ import annotations

from train.config import Config
from train.ema import EmaConfig
from train.evaluate import EvalConfig
from train.inputs import InputConfig
from train.losses import LossConfig
from train.model import ModelConfig
from train.optim import OptimConfig
from train.schedule import ScheduleConfig
from train.step import StepConfig


def cifar10_cpu() -> Config:
    """CIFAR-10 on a CPU, minutes."""
    return Config(
        recipe="cifar10_cpu",
        input=InputConfig(
            batch_size=256, crop="pad", size=32, pad=4, eval_size=32, eval_resize=32, eval_split="test"
        ),
        model=ModelConfig(arch="cifar_resnet9", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        optim=OptimConfig(optimizer="sgd", lr=0.3, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(duration="20ep", warmup="20%", decay="linear"),
        ema=EmaConfig(ema_decay=0.999, ema_warmup=True),
        evaluation=EvalConfig(flip_tta=True),
        loss=LossConfig(label_smoothing=0.1),
        step=StepConfig(precision="bf16"),
        log_every=20,
    )
