"""A pretrained network with a new head on another dataset.

Source: layer-wise decay after Bao et al., "BEiT", 2021, with the settings that Liu et al., "A ConvNet for the 2020s",
2022, publish for fine-tuning ConvNeXt-B and larger (TRAINING.md: learning rate 5e-5 for a batch of 512, weight decay
1e-8, 30 epochs, no warm-up, no mixing, head_init_scale 0.001; layer decay 0.8 after pretraining on ImageNet-22k, 0.7
after ImageNet-1k). Nothing is published for ConvNeXt-T.
Command: python -m train --data flowers --recipe finetune --pretrained timm
Expected time: not measured.
Expected accuracy: depends on the dataset; docs/recipes.md measures it between classes of CIFAR-10.

--pretrained takes timm (weights that timm downloads), a run folder or checkpoint of ours, or any file of weights of the
model; a head of another size or for other classes starts afresh. Images are as the weights had them (--model-input);
the sizes below are for a training without. Another --model may need --drop-path 0. Layer decay is 0.8, since timm's
weights of convnext_tiny come from ImageNet-12k; for weights from ImageNet-1k alone give --layer-decay 0.7.
Not published, our choice: the learning rate 2.5e-4 for a batch of 128 (the layers before the head learn slower and
slower); a warm-up of one epoch; crops of at least 0.35 of the area, since a fine-tuned
network should see whole objects. Left out: head_init_scale, which only ConvNeXt has, so that --arch may be any network;
--model-args head_init_scale=0.001 is as published.
A new head starts as the linear probe of the pretrained features: Kumar et al., "Fine-tuning can distort pretrained
features and underperform out-of-distribution", 2022 (LP-FT); docs/recipes.md measures what that is worth.
--freeze-epochs 2 lets the head learn alone first.
"""

from __future__ import annotations

from train.config import Config
from train.inputs import InputConfig
from train.losses import LossConfig
from train.model import ModelConfig
from train.optim import OptimConfig
from train.schedule import ScheduleConfig
from train.step import StepConfig


def finetune() -> Config:
    """Fine-tuning of a pretrained ConvNeXt-T."""
    return Config(
        recipe="finetune",
        input=InputConfig(
            batch_size=128,
            size=224,
            scale=(0.35, 1.0),
            interpolation="bicubic",
            augment="rand-m9-mstd0.5-inc1",
            erase=0.25,
            eval_size=224,
            eval_resize=256,
            model_input=True,
        ),
        model=ModelConfig(arch="convnext_tiny", drop_path=0.1, head_init="probe"),
        loss=LossConfig(label_smoothing=0.1),
        optim=OptimConfig(optimizer="adamw", lr=2.5e-4, weight_decay=1e-8, layer_decay=0.8),
        schedule=ScheduleConfig(duration="30ep", warmup="1ep", decay="cosine", final_lr=1e-6),
        step=StepConfig(precision="bf16"),
    )
