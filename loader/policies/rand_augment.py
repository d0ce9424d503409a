"""RandAugment in timm's notation."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from loader.ops import Op
from loader.policies.base import (
    ENHANCING,
    MEAN,
    Color,
    Draw,
    Layer,
    Leveled,
    codes,
    geometry,
    layer,
    of,
    plain,
)
from shard.errors import FeedlineError


@dataclass(frozen=True, slots=True, kw_only=True)
class RandAugment:
    """Random operations at one magnitude.

    Source: Cubuk et al., "RandAugment", 2019, as timm's `rand_augment_transform` computes it, with bilinear
    resampling (timm: bicubic, or either at random).

    Attributes:
        layers_per_image: operations chosen, with repetition ("n" in timm's string).
        magnitude: 0 … 10 ("m").
        std: of a normal noise on the magnitude; infinite: uniform in 0 … magnitude ("mstd").
        maximum: bound of the magnitude with its noise ("mmax").
        increasing: operations that grow stronger with the magnitude, all of them ("inc1").
        probability: of applying a chosen operation ("p").
        fill: colour of what comes from outside the image.
    """

    layers_per_image: int = 2
    magnitude: float = 10.0
    std: float = 0.0
    maximum: float = 10.0
    increasing: bool = False
    probability: float = 0.5
    fill: Color = MEAN

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        for name, ok, must in (
            ("layers_per_image", self.layers_per_image >= 1, "be at least 1"),
            ("magnitude", self.magnitude >= 0, "not be negative"),
            ("std", self.std >= 0, "not be negative"),
            ("probability", 0 <= self.probability <= 1, "lie in 0 … 1"),
        ):
            if not ok:
                raise FeedlineError(f"RandAugment {name} is {getattr(self, name)}; it must {must}")

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """Understand timm's notation, such as "rand-m7-mstd0.5-inc1".

        Raises:
            FeedlineError: an unknown section.
        """
        names = {
            "m": "magnitude",
            "n": "layers_per_image",
            "p": "probability",
            "mstd": "std",
            "mmax": "maximum",
        }
        values: dict[str, float] = {}
        for section in text.split("-")[1:]:
            match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|inf)", section)
            if not match or (match[1] not in names and match[1] != "inc"):
                raise FeedlineError(
                    f"{text!r} has the section {section!r}; known are m7, n2, p0.5, mstd0.5, mmax10, inc1"
                )
            values[names.get(match[1], match[1])] = float(match[2])
        std = values.get("std", 0.0)
        return cls(
            layers_per_image=int(values.get("layers_per_image", 2)),
            magnitude=values.get("magnitude", 10.0),
            std=math.inf if std > 100 else std,  # timm's rule
            maximum=values.get("maximum", 10.0),
            increasing=bool(values.get("inc", 0)),
            probability=values.get("probability", 0.5),
        )

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """See `Policy.choices`."""
        return (codes(self.operations()),) * self.layers_per_image

    def layers(self, draw: Draw, size: int) -> list[Layer]:
        """See `Policy.layers`."""
        ops, layers = self.operations(), []
        for k in range(self.layers_per_image):
            chosen = draw.choice(k, 0, len(ops))
            chosen[draw.uniform(k, 1) >= self.probability] = -1
            magnitude = np.full(len(chosen), float(self.magnitude))
            if math.isinf(self.std):
                magnitude *= draw.uniform(k, 2)
            elif self.std:
                magnitude += self.std * draw.normal(k, 2)
            magnitude = magnitude.clip(0.0, self.maximum)
            layers.append(layer(ops, chosen, magnitude / 10.0, draw.sign(k, 4), size))
        return layers

    def operations(self) -> list[Leveled]:
        """Timm's operations in timm's order, by magnitude / 10."""
        if self.increasing:
            posterize = of(Op.POSTERIZE, lambda m, s: 4.0 - np.trunc(m * 4))
            solarize = of(Op.SOLARIZE, lambda m, s: 256.0 - np.minimum(256, np.trunc(m * 256)))
            enhance = [of(op, lambda m, s: np.maximum(0.1, 1.0 + s * m * 0.9)) for op in ENHANCING]
        else:
            posterize = of(Op.POSTERIZE, lambda m, s: np.trunc(m * 4))
            solarize = of(Op.SOLARIZE, lambda m, s: np.minimum(256, np.trunc(m * 256)))
            enhance = [of(op, lambda m, s: m * 1.8 + 0.1) for op in ENHANCING]
        rotate, *shears_and_shifts = geometry(Op.AFFINE_LINEAR, self.fill, (30.0, 0.3, 0.45, True))
        add = of(Op.SOLARIZE_ADD, lambda m, s: np.minimum(128, np.trunc(m * 110)))
        first = [plain(Op.AUTOCONTRAST), plain(Op.EQUALIZE), plain(Op.INVERT), rotate]
        return [*first, posterize, solarize, add, *enhance, *shears_and_shifts]
