"""TrivialAugment, wide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loader.ops import Op
from loader.policies.base import BLACK, ENHANCING, Color, Draw, Layer, Leveled, geometry, layer, of, plain


@dataclass(frozen=True, slots=True, kw_only=True)
class TrivialAugmentWide:
    """One operation at a random one of 31 magnitudes.

    Source: Müller and Hutter, "TrivialAugment", 2021, as torchvision's `TrivialAugmentWide` computes it.
    """

    fill: Color = BLACK
    choices: tuple[tuple[int, ...], ...] = (
        (*sorted({Op.AFFINE, *ENHANCING, Op.POSTERIZE, Op.SOLARIZE, Op.AUTOCONTRAST, Op.EQUALIZE}),),
    )

    def layers(self, draw: Draw, size: int) -> list[Layer]:
        """See `Policy.layers`."""
        ops = self.operations()
        chosen = draw.choice(0, 0, len(ops) + 1) - 1  # torchvision counts the identity as an operation
        return [layer(ops, chosen, draw.choice(0, 1, 31) / 30.0, draw.sign(0, 2), size)]

    def operations(self) -> list[Leveled]:
        """Torchvision's operations by magnitude in 0 … 1; the translation is 32 pixels whatever the size."""
        moves = geometry(Op.AFFINE, self.fill, (135.0, 0.99, 32.0, False))
        # torchvision cuts translations to whole pixels
        rotate, shear_x, shear_y = moves[:3]
        x, y = (_whole(ops) for ops in moves[3:])
        enhance = [of(op, lambda m, s: 1.0 + s * m * 0.99) for op in ENHANCING]
        posterize = of(Op.POSTERIZE, lambda m, s: 8.0 - np.rint(m * 6))
        solarize = of(Op.SOLARIZE, lambda m, s: 255.0 - m * 255)
        return [
            shear_x, shear_y, x, y, rotate, *enhance, posterize, solarize,
            plain(Op.AUTOCONTRAST), plain(Op.EQUALIZE),
        ]  # fmt: skip


def _whole(leveled: Leveled) -> Leveled:
    op, arguments = leveled
    return op, lambda m, s, size: np.trunc(arguments(m, s, size))
