"""ResNet-50 on ImageNet-1k, 90 epochs.

Source: NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5: Goyal et al., "Accurate,
Large Minibatch SGD", 2017, with cosine decay and label smoothing (He et al., "Bag of Tricks", 2018).
Command: torchrun --nproc-per-node 8 -m train --data imagenet --recipe resnet50_imagenet
Expected time: 6 h on 8 × A100 (NVIDIA: 16,621 images/s in the training step); not measured here.
Expected accuracy: about 77 % top-1; not measured here.

As there, the last norm of a block starts at 1 (timm starts it at 0; NVIDIA's last_bn_0_init is False).
Different here: filters start with timm's fan-out variance (there fan-in: conv_init "fan_in").
"""

from __future__ import annotations

from train.config import Config
from train.inputs import InputConfig
from train.losses import LossConfig
from train.model import ModelConfig
from train.optim import OptimConfig
from train.schedule import ScheduleConfig
from train.step import StepConfig


def resnet50_imagenet() -> Config:
    """ResNet-50 on ImageNet-1k, 90 epochs, 256 images a GPU on 8 GPUs (fewer GPUs: --accumulate)."""
    return Config(
        recipe="resnet50_imagenet",
        input=InputConfig(batch_size=2048, crop="random-resized", size=224, eval_size=224, eval_resize=256),
        model=ModelConfig(arch="resnet50", model_args="zero_init_last=false"),
        # 0.256 per 256 images; the weight decay is 1/32768.
        optim=OptimConfig(optimizer="momentum", lr=2.048, momentum=0.875, weight_decay=3.0517578125e-05),
        schedule=ScheduleConfig(duration="90ep", warmup="8ep", decay="cosine"),
        loss=LossConfig(label_smoothing=0.1),
        step=StepConfig(precision="bf16"),
    )
