"""Feature pyramids of a trained network, C2 to C5, for detection and segmentation.

    body = load_pyramid(Path("runs/mine"))
    body(images)        # {"c2": [B, 256, H/4, W/4], …, "c5": [B, 2048, H/32, W/32]} of a ResNet-50

Names are those of Lin et al., "Feature pyramid networks for object detection", 2017: level l has a stride of 2 ** l.
examples/backbone_detection.py puts torchvision's Faster R-CNN and DeepLab on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import freeze_batch_norm_2d
from torch import nn

from shard.errors import FeedlineError
from train.model import statistics
from train.pretrained import Color
from train.trained import load_trained

LEVELS = (2, 3, 4, 5)


class Pyramid(nn.Module):
    """Feature maps by level of normalised images, without the layers that only the classifier needs.

    The model is taken over, and changed: what no level needs is removed.

    Args:
        model: a timm model.
        levels: wanted ones; level l has a stride of 2 ** l, where the model is not dilated.
        strides: stride of each of its feature maps; None: as timm says of this model. Of a dilated model, those that it
            would have without.

    Attributes:
        channels: by level's name, such as {"c2": 256, …}.
        mean: of the images that the weights are for, with pixels in 0 … 1.
        std: their standard deviation.

    Raises:
        FeedlineError: the model has no such level, or gives no feature maps.
    """

    def __init__(
        self,
        model: nn.Module,
        levels: Sequence[int] = LEVELS,
        strides: Sequence[int] | None = None,
        *,
        mean: Color = IMAGENET_DEFAULT_MEAN,
        std: Color = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        levels = sorted(set(levels))  # timm gives maps in the network's order, whatever it is asked for
        self.mean, self.std = mean, std
        own = feature_strides(model)
        self._indices = [_index(level, own if strides is None else list(strides)) for level in levels]
        info: Any = model.feature_info
        self.channels = {
            f"c{level}": int(_entry(info, i)["num_chs"])
            for level, i in zip(levels, self._indices, strict=True)
        }
        unfinished: Any = model
        if hasattr(model, "prune_intermediate_layers"):
            self._indices = list(unfinished.prune_intermediate_layers(self._indices))
        self.model = unfinished

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps {"c2": [B, C, H/4, W/4], …} of normalised images [B, 3, H, W]."""
        maps = self.model.forward_intermediates(
            images, indices=self._indices, output_fmt="NCHW", intermediates_only=True
        )
        return dict(zip(self.channels, maps, strict=True))


def load_pyramid(
    run: Path,
    levels: Sequence[int] = LEVELS,
    *,
    checkpoint: str = "best",
    output_stride: int | None = None,
    frozen_norms: bool = True,
) -> Pyramid:
    """The pyramid of a run's network, ready to be trained on.

    Args:
        run: the run folder.
        levels: wanted ones.
        checkpoint: "best", "last" or a path.
        output_stride: 8 or 16: dilate the last stages instead of striding, as DeepLab does (Chen et al., "Rethinking
            atrous convolution for semantic image segmentation", 2017), in models that can.
        frozen_norms: freeze batch norms, statistics and all, as detection does with its small batches.

    Raises:
        FeedlineError: no such run, or its model has no such level or cannot be dilated.
    """
    trained = load_trained(run, checkpoint)
    strides = feature_strides(trained.net.model)
    if output_stride is not None:
        trained = load_trained(run, checkpoint, model_args=f"output_stride={output_stride}")
    model: nn.Module = trained.net.model.requires_grad_(True)
    mean, std = statistics(trained.config.model)
    pyramid = Pyramid(model, levels, strides, mean=mean, std=std)
    if frozen_norms:
        pyramid.model = freeze_batch_norm_2d(pyramid.model)
    return pyramid.train()


def feature_strides(model: nn.Module) -> list[int]:
    """Strides of the feature maps that a timm model can give.

    Raises:
        FeedlineError: it gives none.
    """
    info: Any = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise FeedlineError(
            f"{type(model).__name__} gives no feature maps (timm's forward_intermediates); train another --arch, "
            "such as resnet50 or convnext_tiny"
        )
    return [int(_entry(info, i)["reduction"]) for i in range(len(info))]


def _entry(info: Any, index: int) -> dict[str, Any]:
    found: dict[str, Any] = info[index]
    return found


def _index(level: int, strides: list[int]) -> int:
    """The last map of a level's stride."""
    stride = 2**level
    if stride not in strides:
        have = ", ".join(f"C{s.bit_length() - 1}" for s in sorted(set(strides)))
        raise FeedlineError(f"the model has no level C{level}, a map of stride {stride}; it has {have}")
    return len(strides) - 1 - strides[::-1].index(stride)
