"""Augmentation policies: which operations with which arguments, as a pure function of (seed, epoch, id).

A policy turns a `Draw`, the keyed random numbers of a batch, into layers of (operation, arguments). Definitions
are those of timm and torchvision, named at each; only the random numbers are `loader.keyed`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loader.keyed import Stream, uniform
from loader.ops import ARGS, Floats, Op, affine, rotation, single

Ints = npt.NDArray[np.int32]
Layer = tuple[Ints, Floats]  # op [B], arg [B, ARGS]
Color = tuple[int, int, int]
BLACK, MEAN = (0, 0, 0), (124, 116, 104)  # timm fills with ImageNet's mean, torchvision with black
_STREAMS_PER_LAYER = 8


@dataclass(frozen=True, slots=True)
class Draw:
    """Random numbers of a batch for the layers of a policy.

    Attributes:
        seed: of the loader.
        epoch: of the order.
        ids: int64 [B].
        first: number of the first layer, so that policies in a row draw independently.
    """

    seed: int
    epoch: int
    ids: npt.NDArray[np.int64]
    first: int = 0

    def uniform(self, layer: int, kind: int) -> Floats:
        """Give numbers in [0, 1), [B], for one of eight purposes (`kind`) within a layer."""
        stream = Stream.POLICY + (self.first + layer) * _STREAMS_PER_LAYER + kind
        return uniform(self.seed, self.epoch, self.ids, stream)

    def choice(self, layer: int, kind: int, n: int) -> npt.NDArray[np.int64]:
        """Give whole numbers in 0 … n - 1, [B]."""
        return (self.uniform(layer, kind) * n).astype(np.int64)

    def sign(self, layer: int, kind: int) -> Floats:
        """Give -1.0 or 1.0, [B]."""
        return np.where(self.uniform(layer, kind) < 0.5, -1.0, 1.0)

    def normal(self, layer: int, kind: int) -> Floats:
        """Give standard normal numbers, [B], from two purposes, `kind` and the next (Box and Muller, 1958)."""
        radius = np.sqrt(-2.0 * np.log(1.0 - self.uniform(layer, kind)))
        return radius * np.cos(2.0 * math.pi * self.uniform(layer, kind + 1))


class Policy(Protocol):
    """Draws layers of operations."""

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """Operations that each layer may hold, besides the identity; what a graph has to be built for."""
        ...

    def layers(self, draw: Draw, size: int) -> list[Layer]:
        """One layer per entry of `choices`, for crops of `size` × `size` pixels."""
        ...


# What an operation of a policy is: the operation, and its arguments [N, ARGS] from (magnitude [N], sign [N], size).
Leveled = tuple[Op, Callable[[Floats, Floats, int], Floats]]


def plain(op: Op) -> Leveled:
    """Give an operation without arguments."""
    return op, lambda m, s, size: np.zeros((len(m), ARGS))


def of(op: Op, value: Callable[[Floats, Floats], Floats]) -> Leveled:
    """Give an operation whose one argument is a function of magnitude and sign."""
    return op, lambda m, s, size: single(value(m, s))


def geometry(op: Op, fill: Color, bounds: tuple[float, float, float, bool]) -> list[Leveled]:
    """Rotation by degrees, shears, and translations, each at magnitude 1: timm's and torchvision's order."""
    degrees, shear, shift, relative = bounds

    def pixels(m: Floats, s: Floats, size: int) -> Floats:
        moved: Floats = m * s * shift * (size if relative else 1)
        return moved

    return [
        (op, lambda m, s, size: rotation(m * s * degrees, size, fill)),
        (op, lambda m, s, size: affine((1, m * s * shear, 0, 0, 1, 0), fill)),
        (op, lambda m, s, size: affine((1, 0, 0, m * s * shear, 1, 0), fill)),
        (op, lambda m, s, size: affine((1, 0, pixels(m, s, size), 0, 1, 0), fill)),
        (op, lambda m, s, size: affine((1, 0, 0, 0, 1, pixels(m, s, size)), fill)),
    ]


ENHANCING = (Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS)


def layer(ops: list[Leveled], chosen: npt.NDArray[np.int64], m: Floats, s: Floats, size: int) -> Layer:
    """Evaluate for every image the operation that was chosen for it; -1 chooses none."""
    op, arg = np.zeros(len(chosen), np.int32), np.zeros((len(chosen), ARGS))
    for number, (code, arguments) in enumerate(ops):
        rows = np.flatnonzero(chosen == number)
        if len(rows):
            op[rows], arg[rows] = code, arguments(m[rows], s[rows], size)
    return op, arg


def codes(ops: Iterable[Leveled]) -> tuple[int, ...]:
    """Collect the operations, for `Policy.choices`."""
    return tuple(sorted({int(op) for op, _ in ops}))
