"""Random erasing: boxes drawn per sample, painted over in finished batches on any device."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from loader.keyed import Stream, hash_u64, uniform
from shard.errors import FeedlineError

MODES = ("const", "rand", "pixel")
_ATTEMPTS, _PER_ATTEMPT = 10, 4
_NOISE_BITS = 18
_MEAN, _STD = (
    np.array([123.675, 116.28, 103.53]),
    np.array([58.395, 57.12, 57.375]),
)  # ImageNet's, in grey levels


@dataclass(frozen=True, slots=True, kw_only=True)
class Erase:
    """Boxes of B images.

    Attributes:
        box: int32 [B, 4], (top, left, height, width); height 0 where nothing is erased.
        noise: int64 [B], where in the table of noise each box starts.
        mode: one of `MODES`.
    """

    box: npt.NDArray[np.int32]
    noise: npt.NDArray[np.int64]
    mode: str

    def take(self, rows: npt.NDArray[np.int64]) -> Erase:
        """Only the images `rows`."""
        return Erase(box=self.box[rows], noise=self.noise[rows], mode=self.mode)

    def paint(self, row: int, image: torch.Tensor) -> None:
        """Paint the box of row `row` into its image, uint8 [H, W, 3], in place."""
        top, left, height, width = self.box[row].tolist()
        if not height:
            return
        table, start = _noise_table(image.device), int(self.noise[row])
        box = image[top : top + height, left : left + width]
        if self.mode == "pixel":
            number = torch.arange(start, start + height * width, device=image.device) % len(table)
            box.copy_(table[number].view(height, width, 3))
        else:
            box.copy_((table[start] if self.mode == "rand" else _mean(image.device)).expand_as(box))

    def apply(self, images: torch.Tensor) -> None:
        """Paint all boxes in uint8 [≥ B, H, W, 3], in place."""
        for row in np.flatnonzero(self.box[:, 2]).tolist():
            self.paint(row, images[row])


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomErasing:
    """Paint a random box over, with a probability.

    Source: Zhong et al., "Random Erasing Data Augmentation", 2017, as timm's `RandomErasing` computes it with one
    box. timm paints after normalisation; here colours are in grey levels, so that noise is cut off at 0 and 255.

    Attributes:
        probability: of erasing.
        area: bounds of the box's share of the image.
        ratio: bounds of its height / width.
        mode: "const": ImageNet's mean colour; "rand": one random colour; "pixel": noise.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    mode: str = "pixel"

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if not 0 <= self.probability <= 1:
            raise FeedlineError(f"RandomErasing probability is {self.probability}; it must lie in 0 … 1")
        if self.mode not in MODES:
            raise FeedlineError(f"RandomErasing mode is {self.mode!r}; choose one of {', '.join(MODES)}")
        for name, (low, high), top in (("area", self.area, 1.0), ("ratio", self.ratio, math.inf)):
            if not 0 < low <= high <= top:
                raise FeedlineError(
                    f"RandomErasing {name} is ({low}, {high}); it must be 0 < low ≤ high ≤ {top}"
                )

    def draw(self, seed: int, epoch: int, ids: npt.NDArray[np.int64], size: int) -> Erase:
        """Boxes of the samples `ids` [B] in crops of `size` × `size` pixels."""
        box = np.zeros((len(ids), 4), np.int32)
        todo = uniform(seed, epoch, ids, Stream.ERASE) < self.probability
        log_low, log_high = map(math.log, self.ratio)
        for attempt in range(_ATTEMPTS):
            first = Stream.ERASE + 2 + attempt * _PER_ATTEMPT
            area, ratio, down, across = (uniform(seed, epoch, ids, first + k) for k in range(_PER_ATTEMPT))
            area = (self.area[0] + area * (self.area[1] - self.area[0])) * size * size
            ratio = np.exp(log_low + ratio * (log_high - log_low))
            height = np.rint(np.sqrt(area * ratio))
            width = np.rint(np.sqrt(area / ratio))
            top, left = np.floor(down * (size - height + 1)), np.floor(across * (size - width + 1))
            fits = todo & (height < size) & (width < size)
            box[fits] = np.stack([top, left, height, width], axis=1)[fits]
            todo &= ~fits
        start = hash_u64(seed, epoch, ids, Stream.ERASE + 1) >> np.uint64(64 - _NOISE_BITS)
        return Erase(box=box, noise=start.astype(np.int64), mode=self.mode)


@functools.cache
def _noise_table(device: torch.device) -> torch.Tensor:
    """Normally distributed colours, uint8 [2**_NOISE_BITS, 3]; always the same ones."""
    number = np.arange(3 << _NOISE_BITS)
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform(0, 0, number, Stream.ERASE)))
    normal = (radius * np.cos(2.0 * math.pi * uniform(0, 0, number, Stream.ERASE + 1))).reshape(-1, 3)
    colors = np.rint(_MEAN + _STD * normal).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(colors).to(device)


@functools.cache
def _mean(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.rint(_MEAN).astype(np.uint8)).to(device)
