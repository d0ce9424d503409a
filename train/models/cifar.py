"""A small residual network for 32 × 32 images, quick on a CPU.

After D. Page's ResNet-9 ("How to train your ResNet", 2018; DAWNBench's CIFAR-10 entry), with strided
convolutions instead of convolution and pooling, so that no 3 × 3 convolution but the first sees the full
resolution: 53 million multiply-adds and 1.87 million parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from train.models.pooled import MaxPooled


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels)
        self.conv2 = _conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.conv2(self.conv1(x))
        return out


class CifarResNet(MaxPooled):
    """Stem, three stages that each halve the resolution, the last two with a residual block; global max pooling.

    Args:
        num_classes: outputs; 0 gives the pooled features.
        in_chans: input channels.
        widths: channels of the stem and the stages.
    """

    logit_scale = 0.125  # as in ResNet-9

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = widths[3]
        self.stem = _conv(in_chans, widths[0])
        self.stage1 = _conv(widths[0], widths[1], stride=2)
        self.stage2 = nn.Sequential(_conv(widths[1], widths[2], stride=2), _Residual(widths[2]))
        self.stage3 = nn.Sequential(_conv(widths[2], widths[3], stride=2), _Residual(widths[3]))
        self.reset_classifier(num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Feature map [B, C, H/8, W/8] of images [B, 3, H, W]."""
        features: torch.Tensor = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return features


# There are no weights to download.
default_cfgs = generate_default_cfgs(
    {"cifar_resnet9": {"num_classes": 10, "input_size": (3, 32, 32), "classifier": "head"}}
)


@register_model  # type: ignore[untyped-decorator]
def cifar_resnet9(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """The network of this file at its standard width."""
    made: CifarResNet = build_model_with_cfg(CifarResNet, "cifar_resnet9", pretrained, **kwargs)
    return made
