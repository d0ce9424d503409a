"""Colour and blur: ColorJitter, single random operations, and DeiT III's 3-Augment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loader.ops import Op, single
from loader.policies.base import Draw, Layer
from shard.errors import FeedlineError

_JITTER = (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue changed by random amounts, in random order.

    Source: torchvision's `ColorJitter`. Factors are uniform in max(0, 1 - x) … 1 + x, the hue's shift in -x … x.

    Attributes:
        brightness: x of the brightness; 0 leaves it alone.
        contrast: x of the contrast.
        saturation: x of the saturation.
        hue: x of the hue, at most 0.5 (turns).
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        """Reject amounts that no image has."""
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise FeedlineError(f"ColorJitter {name} is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.hue <= 0.5:
            raise FeedlineError(f"ColorJitter hue is {self.hue}; it must lie in 0 … 0.5 (turns)")
        if not self._parts():
            raise FeedlineError("ColorJitter changes nothing; give it an amount, or leave it out")

    def _parts(self) -> list[tuple[Op, float]]:
        amounts = (self.brightness, self.contrast, self.saturation, self.hue)
        return [(op, amount) for op, amount in zip(_JITTER, amounts, strict=True) if amount]

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """See `Policy.choices`."""
        ops = tuple(sorted(int(op) for op, _ in self._parts()))
        return (ops,) * len(ops)

    def layers(self, draw: Draw, size: int) -> list[Layer]:
        """See `Policy.layers`."""
        parts = self._parts()
        # Sorting keys gives every image its own order of the operations.
        place = np.argsort([draw.uniform(k, 0) for k in range(len(parts))], axis=0)  # [parts, B]
        value = np.empty(place.shape)
        for k, (op, amount) in enumerate(parts):
            low, high = (-amount, amount) if op is Op.HUE else (max(0.0, 1.0 - amount), 1.0 + amount)
            value[k] = low + draw.uniform(k, 1) * (high - low)
        codes = np.array([int(op) for op, _ in parts], np.int32)
        return [(codes[row], single(np.take_along_axis(value, row[None], axis=0)[0])) for row in place]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sometimes:
    """One operation with a probability."""

    probability: float

    def __post_init__(self) -> None:
        """Reject what is no probability."""
        if not 0 <= self.probability <= 1:
            raise FeedlineError(
                f"{type(self).__name__} probability is {self.probability}; it must lie in 0 … 1"
            )

    def _layer(self, draw: Draw, op: Op, value: npt.ArrayLike) -> list[Layer]:
        hit = draw.uniform(0, 0) < self.probability
        arg = single(np.broadcast_to(value, hit.shape)) * hit[:, None]
        return [(np.where(hit, int(op), 0).astype(np.int32), arg)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomGrayscale(_Sometimes):
    """Grey with a probability (torchvision's `RandomGrayscale`)."""

    probability: float = 0.1
    choices: tuple[tuple[int, ...], ...] = ((Op.GRAYSCALE,),)

    def layers(self, draw: Draw, size: int) -> list[Layer]:
        """See `Policy.layers`."""
        return self._layer(draw, Op.GRAYSCALE, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSolarize(_Sometimes):
    """Values from `threshold` on inverted, with a probability (torchvision's `RandomSolarize`)."""

    probability: float = 0.5
    threshold: float = 128.0
    choices: tuple[tuple[int, ...], ...] = ((Op.SOLARIZE,),)

    def layers(self, draw: Draw, size: int) -> list[Layer]:
        """See `Policy.layers`."""
        return self._layer(draw, Op.SOLARIZE, self.threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomGaussianBlur(_Sometimes):
    """A Gaussian of random width, with a probability; `sigma` are bounds of its standard deviation, pixels."""

    probability: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    choices: tuple[tuple[int, ...], ...] = ((Op.BLUR,),)

    def layers(self, draw: Draw, size: int) -> list[Layer]:
        """See `Policy.layers`."""
        low, high = self.sigma
        return self._layer(draw, Op.BLUR, low + draw.uniform(0, 1) * (high - low))


@dataclass(frozen=True, slots=True)
class ThreeAugment:
    """Grey, solarized or blurred: one of them, always. Goes together with `ColorJitter` of 0.3.

    Source: Touvron et al., "DeiT III", 2022, section 3.2, as timm's "3a" (threshold 128, radius 0.1 … 2).
    """

    choices: tuple[tuple[int, ...], ...] = ((Op.SOLARIZE, Op.GRAYSCALE, Op.BLUR),)

    def layers(self, draw: Draw, size: int) -> list[Layer]:
        """See `Policy.layers`."""
        op = np.array(self.choices[0], np.int32)[draw.choice(0, 0, 3)]
        blur = 0.1 + draw.uniform(0, 1) * 1.9
        return [(op, single(np.select([op == Op.SOLARIZE, op == Op.BLUR], [128.0, blur], 0.0)))]
