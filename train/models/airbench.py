"""The network of airbench94 for 32 × 32 images: a whitening layer, then three groups of two convolutions.

Source: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, and his airbench94.py.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from train.models.pooled import MaxPooled

_WHITENING_EPS = 5e-4


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    """3 × 3 convolution that starts as the identity on the channels it takes in: an implicit residual."""
    conv = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad = False
    return norm


class _Group(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = _norm(outputs)
        self.act1 = nn.GELU()
        self.conv2 = _conv(outputs, outputs)
        self.norm2 = _norm(outputs)
        self.act2 = nn.GELU()


class Airbench(MaxPooled):
    """See the module.

    Args:
        num_classes: outputs; 0 gives the pooled features.
        in_chans: input channels.
        widths: channels of the three groups.
    """

    logit_scale = 1 / 9
    head_bias = False

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, widths: tuple[int, int, int] = (64, 256, 256)
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = widths[2]
        whitened = 2 * in_chans * 2 * 2  # every direction and its opposite
        self.whiten = nn.Conv2d(in_chans, whitened, 2)
        self.whiten.weight.requires_grad = False
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        self.act = nn.GELU()
        self.group1 = _Group(whitened, widths[0])
        self.group2 = _Group(widths[0], widths[1])
        self.group3 = _Group(widths[1], widths[2])
        self.reset_classifier(num_classes)

    def init_from_images(self, images: torch.Tensor) -> None:
        """Make the first layer whiten the 2 × 2 patches of normalised images [N, C, H, W]."""
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1)  # [N, C, H - 1, W - 1, 2, 2]
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * 4).double()
        values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        directions = (vectors / (values + _WHITENING_EPS).sqrt()).T.flip(0)
        both = torch.cat([directions, -directions])
        self.whiten.weight.data.copy_(both.reshape(self.whiten.weight.shape))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Feature map [B, C, H // 8, W // 8] of images [B, 3, H, W]."""
        features: torch.Tensor = self.group3(self.group2(self.group1(self.act(self.whiten(x)))))
        return features


# There are no weights to download.
default_cfgs = generate_default_cfgs(
    {"airbench94": {"num_classes": 10, "input_size": (3, 32, 32), "classifier": "head"}}
)


@register_model  # type: ignore[untyped-decorator]
def airbench94(pretrained: bool = False, **kwargs: Any) -> Airbench:
    """The network of this file at its published width: 1.97 million parameters."""
    made: Airbench = build_model_with_cfg(Airbench, "airbench94", pretrained, **kwargs)
    return made
