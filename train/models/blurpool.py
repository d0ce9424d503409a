"""Blur before strided convolutions, so that downsampling does not alias.

Source: Zhang, "Making convolutional networks shift-invariant again", 2019, as FFCV's ImageNet script applies it
(`BlurPoolConv2d`: a 3 × 3 binomial filter before every strided convolution of at least 16 input channels). timm's
`aa_layer` is another thing: it blurs after the convolution, which then runs without a stride.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_LEAST_CHANNELS = 16  # leaves out the stem, which sees the image


class BlurConv2d(nn.Conv2d):
    """A convolution on a blurred input. Its state is that of the plain convolution: keys do not change."""

    blur: torch.Tensor

    @classmethod
    def of(cls, conv: nn.Conv2d) -> BlurConv2d:
        """Make one that takes over the parameters of `conv`."""
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        made.weight, made.bias = conv.weight, conv.bias
        binomial = torch.tensor([1.0, 2.0, 1.0])
        kernel = torch.outer(binomial, binomial) / 16
        made.register_buffer("blur", kernel.repeat(conv.in_channels, 1, 1, 1), persistent=False)
        return made

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve [B, C, H, W] after the blur."""
        kernel = self.blur.to(input.dtype)
        blurred = F.conv2d(input, kernel, stride=1, padding=1, groups=self.in_channels)
        return super().forward(blurred)


def apply_blurpool(model: nn.Module) -> int:
    """Replace the strided convolutions of `model`, in place; returns how many."""
    count = 0
    for name, child in model.named_children():
        # Not a subclass, such as timm's with TensorFlow's padding: it computes something else.
        if type(child) is nn.Conv2d and max(child.stride) > 1 and child.in_channels >= _LEAST_CHANNELS:
            setattr(model, name, BlurConv2d.of(child))
            count += 1
        else:
            count += apply_blurpool(child)
    return count
