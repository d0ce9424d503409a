"""ResNet-18 and ResNet-50 on ImageNet-1k in 16 to 88 epochs.

Source: Leclerc et al., "FFCV: accelerating training by removing data bottlenecks", 2022; the configuration files
rn18_configs and rn50_configs of github.com/libffcv/ffcv-imagenet and its train_imagenet.py.
Command: torchrun --nproc-per-node 8 -m train --data imagenet --recipe ffcv_resnet50_16ep
Expected time: ResNet-50 in 16, 24, 32, 40, 56, 88 epochs: 14.9, 21.7, 28.7, 35.6, 49.4, 77.2 minutes on 8 × A100;
    ResNet-18: 35, 52, 69, 86, 119, 187 minutes on one A100 (published); not measured here.
Expected accuracy: ResNet-50: 73.8, 75.6, 76.6, 77.2, 78.0, 78.4 % top-1; ResNet-18: 66.9, 68.8, 70.0, 70.6, 71.3,
    72.4 % (published); not measured here.

As there, the last norm of a block starts at 1 (timm starts it at 0). A ResNet-50 batch is 8 × 512 there, and the
learning rate 1.7 is for all 4,096; ResNet-18: 0.5 for 1,024 on one GPU.
Different here: biases of the classifier have no weight decay; FFCV crops 224/256 of the shorter side and resizes that
to 256 px, which is a resize to 292.57 px: here 293; images come from JPEGs as they are, there scaled to 500 (400) px.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from train.config import Config
from train.evaluate import EvalConfig
from train.inputs import InputConfig
from train.losses import LossConfig
from train.model import ModelConfig
from train.optim import OptimConfig
from train.resolution import ResolutionConfig
from train.schedule import ScheduleConfig
from train.step import StepConfig

# Epochs, and between which of them images grow from 160 to 192 px.
RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}
# Network: batch, peak learning rate, weight decay.
_SETTINGS = {"resnet18": (1024, 0.5, 5e-5), "resnet50": (4096, 1.7, 1e-4)}


def ffcv(arch: str, epochs: int) -> Config:
    """FFCV's recipe of "resnet18" or "resnet50" for 16, 24, 32, 40, 56 or 88 epochs."""
    batch_size, lr, weight_decay = _SETTINGS[arch]
    ramp_from, ramp_to = RAMPS[epochs]
    return Config(
        recipe=f"ffcv_{arch}_{epochs}ep",
        input=InputConfig(batch_size=batch_size, size=192, eval_size=256, eval_resize=293),
        resolution=ResolutionConfig(start_size=160, ramp_from=f"{ramp_from}ep", ramp_to=f"{ramp_to}ep"),
        # torchvision starts the last norm of a block at 1, timm at 0.
        model=ModelConfig(arch=arch, blurpool=True, model_args="zero_init_last=false"),
        loss=LossConfig(label_smoothing=0.1),
        optim=OptimConfig(optimizer="momentum", lr=lr, momentum=0.9, weight_decay=weight_decay),
        schedule=ScheduleConfig(duration=f"{epochs}ep", warmup="2ep", warmup_lr=1e-4 * lr, decay="linear"),
        step=StepConfig(precision="fp16"),
        evaluation=EvalConfig(flip_tta=True),
    )


def _recipes() -> dict[str, Callable[[], Config]]:
    return {
        f"ffcv_{arch}_{epochs}ep": functools.partial(ffcv, arch, epochs)
        for arch in _SETTINGS
        for epochs in RAMPS
    }


RECIPES = _recipes()
