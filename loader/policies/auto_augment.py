"""AutoAugment's policy for ImageNet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loader.ops import Op
from loader.policies.base import BLACK, Color, Draw, Layer, Leveled, codes, geometry, layer, of, plain

# (operation, probability, magnitude 0 … 9) twice: the sub-policies for ImageNet of Cubuk et al., "AutoAugment:
# Learning Augmentation Policies from Data", 2018, appendix, table 9.
_IMAGENET = """
posterize .4 8 rotate .6 9 | solarize .6 5 autocontrast .6 - | equalize .8 - equalize .6 -
posterize .6 7 posterize .6 6
equalize .4 - solarize .2 4 | equalize .4 - rotate .8 8 | solarize .6 3 equalize .6 - | posterize .8 5 equalize 1 -
rotate .2 3 solarize .6 8 | equalize .6 - posterize .4 6 | rotate .8 8 color .4 0 | rotate .4 9 equalize .6 -
equalize 0 - equalize .8 - | invert .6 - equalize 1 - | color .6 4 contrast 1 8 | rotate .8 8 color 1 2
color .8 8 solarize .8 7 | sharpness .4 7 invert .6 - | shear_x .6 5 equalize 1 - | color .4 0 equalize .6 -
equalize .4 - solarize .2 4 | solarize .6 5 autocontrast .6 - | invert .6 - equalize 1 - | color .6 4 contrast 1 8
equalize .8 - equalize .6 -
"""
IMAGENET_POLICY: tuple[tuple[tuple[str, float, int], ...], ...] = tuple(
    tuple((name, float(p), 0 if m == "-" else int(m)) for name, p, m in zip(*[iter(row.split())] * 3, strict=True))
    for row in _IMAGENET.strip().replace("\n", "|").split("|")
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoAugment:
    """One of 25 learned pairs of operations.

    Source: Cubuk et al., "AutoAugment", 2018, as torchvision's `AutoAugment(AutoAugmentPolicy.IMAGENET)`.
    """

    fill: Color = BLACK

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """See `Policy.choices`."""
        known = self.operations()
        columns = zip(*IMAGENET_POLICY, strict=True)
        return tuple(codes(known[name] for name, p, _ in column if p > 0) for column in columns)

    def layers(self, draw: Draw, size: int) -> list[Layer]:
        """See `Policy.layers`."""
        row = draw.choice(0, 0, len(IMAGENET_POLICY))
        known = self.operations()
        names = list(known)
        layers = []
        for k in range(2):
            table = [IMAGENET_POLICY[i][k] for i in range(len(IMAGENET_POLICY))]
            chosen = np.array([names.index(name) for name, _, _ in table])[row]
            chosen[draw.uniform(k, 1) >= np.array([p for _, p, _ in table])[row]] = -1
            magnitude = np.array([m for _, _, m in table])[row] / 9.0
            layers.append(layer(list(known.values()), chosen, magnitude, draw.sign(k, 2), size))
        return layers

    def operations(self) -> dict[str, Leveled]:
        """Torchvision's operations by magnitude in 0 … 1 (ten steps)."""
        rotate, shear_x, *_ = geometry(Op.AFFINE, self.fill, (30.0, 0.3, 0.0, True))
        enhance = {
            op.name.lower(): of(op, lambda m, s: 1.0 + s * m * 0.9)
            for op in (Op.COLOR, Op.CONTRAST, Op.SHARPNESS)
        }
        return {
            "rotate": rotate,
            "shear_x": shear_x,
            **enhance,
            "posterize": of(Op.POSTERIZE, lambda m, s: 8.0 - np.rint(m * 4)),
            "solarize": of(Op.SOLARIZE, lambda m, s: 255.0 - m * 255),
            "autocontrast": plain(Op.AUTOCONTRAST),
            "equalize": plain(Op.EQUALIZE),
            "invert": plain(Op.INVERT),
        }
