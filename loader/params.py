"""What happens to images, as arrays: the interface between transforms and backends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loader.erase import Erase

Ints = npt.NDArray[np.int32]
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ops:
    """Operations on each of B finished crops, L layers of them; see `loader.ops`.

    Attributes:
        op: int32 [B, L].
        arg: float32 [B, L, ARGS].
        choices: operations that each layer may hold at all; the same for every batch of a transform.
    """

    op: Ints
    arg: npt.NDArray[np.float32]
    choices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """What happens to each of B images; integers in pixels.

    Attributes:
        window: int32 [B, 4], (top, left, height, width) of the source window that is decoded.
        resized: int32 [B, 2], (height, width) that the window is resized to, antialiased.
        offset: int32 [B, 2], (top, left) of the output in the resized window; what lies outside is black.
        flip: bool [B], mirror left and right, last.
        size: output height and width.
        shifted: False where every output is the whole resized window (offset 0, resized == size).
        interpolation: one of `INTERPOLATIONS`.
        ops: what happens to the finished crops; None: nothing.
        erase: boxes that are painted over, last of all; None: none.
    """

    window: Ints
    resized: Ints
    offset: Ints
    flip: npt.NDArray[np.bool_]
    size: int
    shifted: bool
    interpolation: str = "bilinear"
    ops: Ops | None = None
    erase: Erase | None = None

    def take(self, rows: npt.NDArray[np.int64]) -> Params:
        """Only the images `rows`, in that order."""
        ops = self.ops and replace(self.ops, op=self.ops.op[rows], arg=self.ops.arg[rows])
        erase = self.erase and self.erase.take(rows)
        return replace(
            self,
            window=self.window[rows],
            resized=self.resized[rows],
            offset=self.offset[rows],
            flip=self.flip[rows],
            ops=ops,
            erase=erase,
        )


class Transform(Protocol):
    """Computes `Params` from ids and image sizes; a pure function."""

    @property
    def size(self) -> int:
        """Output height and width, pixels."""
        ...

    def params(self, seed: int, epoch: int, ids: npt.ArrayLike, width: Ints, height: Ints) -> Params:
        """Parameters of B samples; a row depends on (seed, epoch, its id, its size) alone.

        Args:
            seed: of the augmentation.
            epoch: from 0.
            ids: whole numbers [B], samples.
            width: int32 [B], of the stored images, pixels.
            height: int32 [B], pixels.
        """
        ...

    def at_size(self, size: int) -> Transform:
        """Give the same transform with another output size; everything in proportion."""
        ...
