"""Features of a trained network: what any of its layers gives for the samples of a split, one vector a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.distributed import World
from train.inputs import rank_loader
from train.model import Normalized
from train.naming import nearest
from train.trained import Trained

PENULTIMATE = "penultimate"


class Extractor:
    """Vectors of a layer: uint8 images [B, H, W, 3] to float32 [B, D].

    Feature maps are averaged over their places, and sequences over their tokens, without class and register tokens.

    Args:
        net: the network, in evaluation mode.
        layer: a module of the timm model, such as layer3 or blocks.5; or "penultimate": what the classifier sees
            (timm's `forward_head(…, pre_logits=True)`).

    Raises:
        FeedlineError: there is no such layer; names the nearest.
    """

    def __init__(self, net: Normalized, layer: str = PENULTIMATE) -> None:
        self._net, self._layer = net, layer
        self._seen: Any = None
        self._run: Callable[[torch.Tensor], torch.Tensor] = self._penultimate
        if layer != PENULTIMATE:
            _find(net.model, layer).register_forward_hook(self._keep)
            self._run = self._hooked
        elif not hasattr(net.model, "forward_head"):
            raise FeedlineError(
                "layer is 'penultimate', but the model has no forward_head; give --layer a module"
            )

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features float32 [B, D] of uint8 images [B, H, W, 3]."""
        return self._run(self._net.normalize(images)).float()

    def _penultimate(self, pixels: torch.Tensor) -> torch.Tensor:
        model: Any = self._net.model
        found: torch.Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
        return found.flatten(1)

    def _hooked(self, pixels: torch.Tensor) -> torch.Tensor:
        self._seen = None
        self._net.model(pixels)
        if not isinstance(self._seen, torch.Tensor):
            raise FeedlineError(f"layer {self._layer!r} gives no tensor in the forward pass; choose another")
        found = pooled(self._seen, self._net.model)
        if len(found) != len(pixels):
            raise FeedlineError(
                f"layer {self._layer!r} gives {len(found)} tensors for {len(pixels)} images, such as one a window; "
                "choose another"
            )
        return found

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._seen = output


def _find(model: nn.Module, layer: str) -> nn.Module:
    modules: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    if layer not in modules:
        top = [name for name in modules if name.count(".") <= 1]
        raise FeedlineError(f"the model has no layer {layer!r}; {nearest(layer, [PENULTIMATE, *top])}")
    return modules[layer]


def pooled(features: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """One vector a sample, [B, D], of what a layer of `model` gave for square images: [B, D], [B, tokens, D] or a map.

    Raises:
        FeedlineError: something of another shape.
    """
    if features.ndim == 2:
        return features
    if features.ndim == 3:
        return features[:, getattr(model, "num_prefix_tokens", 0) :].mean(dim=1)
    if features.ndim == 4 and (places := _places(features.shape, model)):
        return features.mean(dim=places)
    raise FeedlineError(
        f"the layer gives tensors {tuple(features.shape)}, of which there is no mean; choose another"
    )


def _places(shape: torch.Size, model: nn.Module) -> tuple[int, int] | None:
    """Which axes of a map are its places: the two that are alike. None where there are none.

    What the model says of its maps does not hold within blocks: those of ConvNeXt have the channels last.
    """
    first, last = shape[2] == shape[3], shape[1] == shape[2]
    if first and last:  # as many channels as rows
        first = getattr(model, "output_fmt", "NCHW") != "NHWC"
    return (2, 3) if first else (1, 2) if last else None


@dataclass(frozen=True, slots=True)
class Features:
    """Features of a batch of n samples.

    Attributes:
        ids: int64 [n], row numbers of the split's index, on the CPU.
        labels: int64 [n], on the CPU; of a multi-label dataset float32 [n, classes].
        values: float32 [n, D], on the network's device.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    values: torch.Tensor


def extract(
    trained: Trained,
    dataset: Dataset,
    split: str,
    extractor: Extractor,
    device: torch.device,
    *,
    batch_size: int = 64,
) -> Iterator[Features]:
    """Features of every sample of a split, in its order, with the run's evaluation transform.

    Samples that do not decode are left out; the loader logs them.

    Args:
        trained: the run.
        dataset: any, with the run's classes or others.
        split: of it.
        extractor: which features.
        device: where the network is.
        batch_size: samples at a time.

    Raises:
        FeedlineError: features are not finite.
    """
    config = trained.config.input
    size, alone = min(batch_size, len(dataset.split(split))), World(device=device)
    with rank_loader(config, dataset, split, config.eval_transform(), alone, batch_size=size) as loader:
        for batch in loader:
            valid = batch.valid
            values = extractor(batch.images)[valid]
            if not values.isfinite().all():
                raise FeedlineError(
                    f"the features of {trained.checkpoint} are not finite; try an earlier --checkpoint"
                )
            yield Features(batch.ids[valid.cpu()], batch.labels[valid].cpu(), values)
