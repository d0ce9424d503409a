"""What the networks of this package share: a feature map, its maxima, one linear layer, scaled logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn


class MaxPooled(nn.Module, ABC):
    """The rest of a network around `forward_features`, as timm's tools expect it.

    Subclasses call `reset_classifier` when their layers are made.

    Attributes:
        num_classes: outputs; 0 gives the pooled features.
        num_features: channels of the feature map.
        logit_scale: factor of the logits: pooled maxima are large, and unscaled logits diverge in the first steps.
        head_bias: whether the linear layer has one.
    """

    logit_scale: ClassVar[float]
    head_bias: ClassVar[bool] = True
    num_classes: int
    num_features: int
    head: nn.Module

    def get_classifier(self) -> nn.Module:
        """Return the final layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the final layer by a new one."""
        self.num_classes = num_classes
        self.head = (
            nn.Linear(self.num_features, num_classes, bias=self.head_bias) if num_classes else nn.Identity()
        )

    @abstractmethod
    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Feature map [B, C, H // 8, W // 8] of images [B, 3, H, W]."""

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits [B, classes], or pooled features [B, C] with `pre_logits`, of a feature map."""
        pooled = x.amax(dim=(2, 3))
        logits: torch.Tensor = pooled if pre_logits else self.head(pooled) * self.logit_scale
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of normalised images [B, 3, H, W]."""
        return self.forward_head(self.forward_features(x))
