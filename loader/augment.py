"""Augmentation as parameters: integers computed per sample id, applied by either backend.

A transform turns (seed, epoch, ids, image sizes) into `Params`. The pixels come from the backends, which
hold no randomness:

    window of the source  →  resized to `resized`  →  output-sized window at `offset`  →  flipped
      →  operations (`loader.ops`)  →  erased box

The definitions are torchvision's (`RandomResizedCrop`, `Resize` + `CenterCrop`, `RandomCrop(padding=)`),
including its truncation and rounding; only the random numbers come from `loader.keyed`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loader.erase import RandomErasing
from loader.keyed import Stream, uniform
from loader.params import INTERPOLATIONS, Ints, Ops, Params, Transform
from loader.policies import Draw, Layer, Policy
from shard.errors import FeedlineError

_ATTEMPTS = 10  # of torchvision's RandomResizedCrop, before it falls back to a centre crop


def _check(ok: bool, what: str, value: object, must: str) -> None:
    if not ok:
        raise FeedlineError(f"{what} is {value}; it must {must}")


def _check_interpolation(interpolation: str) -> None:
    _check(
        interpolation in INTERPOLATIONS,
        "interpolation",
        repr(interpolation),
        f"be {' or '.join(INTERPOLATIONS)}",
    )


def _flip(probability: float, seed: int, epoch: int, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    return uniform(seed, epoch, ids, Stream.FLIP) < probability


def _full(width: Ints, height: Ints) -> Ints:
    zero = np.zeros_like(width)
    return np.stack([zero, zero, height, width], axis=1).astype(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomResizedCrop:
    """Random area and aspect ratio, resized to a square; the ImageNet training crop.

    Source: Szegedy et al., "Going deeper with convolutions", 2014, as torchvision defines it
    (ten attempts, then the largest centre crop within the ratio bounds).

    Attributes:
        size: output side, pixels.
        scale: bounds of the crop's share of the image area.
        ratio: bounds of the crop's width / height.
        hflip: probability of a horizontal flip.
        interpolation: of the resize, "bilinear" or "bicubic".
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        """Reject bounds that no crop can satisfy."""
        _check(self.size > 0, "RandomResizedCrop size", self.size, "be positive")
        _check(0 < self.scale[0] <= self.scale[1] <= 1, "scale", self.scale, "be 0 < low ≤ high ≤ 1")
        _check(0 < self.ratio[0] <= self.ratio[1], "ratio", self.ratio, "be 0 < low ≤ high")
        _check(0 <= self.hflip <= 1, "hflip", self.hflip, "lie in 0 … 1")
        _check_interpolation(self.interpolation)

    def at_size(self, size: int) -> RandomResizedCrop:
        """See `Transform.at_size`."""
        return replace(self, size=size)

    def params(self, seed: int, epoch: int, ids: npt.ArrayLike, width: Ints, height: Ints) -> Params:
        """See `Transform.params`."""
        window = self._centre(width, height)
        todo = np.ones(len(width), dtype=bool)
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(_ATTEMPTS):

            def draw(stream: Stream, attempt: int = attempt) -> npt.NDArray[np.float64]:
                return uniform(seed, epoch, ids, stream + attempt)

            area = (
                width.astype(np.float64)
                * height
                * (self.scale[0] + draw(Stream.CROP_AREA) * (self.scale[1] - self.scale[0]))
            )
            ratio = np.exp(log_low + draw(Stream.CROP_RATIO) * (log_high - log_low))
            w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
            h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
            top = (draw(Stream.CROP_TOP) * (height - h + 1)).astype(np.int64)
            left = (draw(Stream.CROP_LEFT) * (width - w + 1)).astype(np.int64)
            fits = todo & (w > 0) & (w <= width) & (h > 0) & (h <= height)
            window[fits] = np.stack([top, left, h, w], axis=1)[fits]
            todo &= ~fits
            if not todo.any():
                break
        resized = np.full((len(width), 2), self.size, np.int32)
        flip = _flip(self.hflip, seed, epoch, ids)
        return Params(
            window=window,
            resized=resized,
            offset=np.zeros_like(resized),
            flip=flip,
            size=self.size,
            shifted=False,
            interpolation=self.interpolation,
        )

    def _centre(self, width: Ints, height: Ints) -> Ints:
        """Torchvision's fallback: the largest centre window whose ratio lies within the bounds."""
        in_ratio = width / height
        w, h = width.astype(np.int64), height.astype(np.int64)
        narrow, wide = in_ratio < self.ratio[0], in_ratio > self.ratio[1]
        h = np.where(narrow, np.rint(width / self.ratio[0]).astype(np.int64), h)
        w = np.where(wide, np.rint(height * self.ratio[1]).astype(np.int64), w)
        return np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1).astype(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeCenterCrop:
    """Shorter side to `resize`, then the centre `size` × `size`; the ImageNet evaluation transform.

    As torchvision computes it: the longer side truncated (`int(resize * long / short)`), the centre
    offset rounded half to even. Where the crop is larger than the resized image the border is black.

    Attributes:
        size: output side, pixels.
        resize: shorter side before cropping, pixels.
        interpolation: of the resize, "bilinear" or "bicubic".
    """

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        """Reject sizes that are not positive."""
        _check(self.size > 0, "ResizeCenterCrop size", self.size, "be positive")
        _check(self.resize > 0, "ResizeCenterCrop resize", self.resize, "be positive")
        _check_interpolation(self.interpolation)

    def at_size(self, size: int) -> ResizeCenterCrop:
        """See `Transform.at_size`."""
        return replace(self, size=size, resize=round(self.resize * size / self.size))

    def params(self, seed: int, epoch: int, ids: npt.ArrayLike, width: Ints, height: Ints) -> Params:
        """See `Transform.params`; nothing is random here."""
        short = np.minimum(width, height).astype(np.int64)
        # Integer division is torchvision's int(): its float quotient never falls below the exact integer.
        sides = np.stack([height, width], axis=1).astype(np.int64)
        resized = self.resize * sides // short[:, None]
        spare = resized - self.size
        # Cropping rounds half to even, padding (where the crop is the larger) truncates.
        offset = np.where(spare >= 0, np.rint(spare / 2.0), -(-spare // 2))
        return Params(
            window=_full(width, height),
            resized=resized.astype(np.int32),
            offset=offset.astype(np.int32),
            flip=np.zeros(len(width), dtype=bool),
            size=self.size,
            shifted=True,
            interpolation=self.interpolation,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PadCrop:
    """Zero-pad by `pad`, crop back to `size` at a random place, flip; the CIFAR training augmentation.

    Source: He et al., "Deep residual learning", 2015, section 4.2. Images of another size are first
    resized to `size` × `size`.

    Attributes:
        size: output side, pixels.
        pad: black border on each side, pixels; less than `size`.
        hflip: probability of a horizontal flip.
    """

    size: int = 32
    pad: int = 4
    hflip: float = 0.5

    def __post_init__(self) -> None:
        """Reject a padding that could push the whole image out of view."""
        _check(self.size > 0, "PadCrop size", self.size, "be positive")
        _check(0 <= self.pad < self.size, "PadCrop pad", self.pad, f"lie in 0 … {self.size - 1}")
        _check(0 <= self.hflip <= 1, "hflip", self.hflip, "lie in 0 … 1")

    def at_size(self, size: int) -> PadCrop:
        """See `Transform.at_size`."""
        return replace(self, size=size)

    def params(self, seed: int, epoch: int, ids: npt.ArrayLike, width: Ints, height: Ints) -> Params:
        """See `Transform.params`."""
        streams = (Stream.SHIFT_TOP, Stream.SHIFT_LEFT)
        shift = [uniform(seed, epoch, ids, s) * (2 * self.pad + 1) for s in streams]
        return Params(
            window=_full(width, height),
            resized=np.full((len(width), 2), self.size, np.int32),
            offset=np.stack(shift, axis=1).astype(np.int32) - self.pad,
            flip=_flip(self.hflip, seed, epoch, ids),
            size=self.size,
            shifted=True,
        )


@dataclass(frozen=True, slots=True)
class Compose:
    """A crop, then policies in their order, then perhaps an erased box.

    Attributes:
        crop: `RandomResizedCrop`, `ResizeCenterCrop`, `PadCrop` or another transform.
        policies: such as `RandAugment`, or what `parse_policy` gives; on the finished crops.
        erasing: the last step; None: nothing is painted over.
    """

    crop: Transform
    policies: tuple[Policy, ...] = ()
    erasing: RandomErasing | None = None

    @property
    def size(self) -> int:
        """Output height and width, pixels."""
        return self.crop.size

    def at_size(self, size: int) -> Compose:
        """See `Transform.at_size`."""
        return replace(self, crop=self.crop.at_size(size))

    def params(self, seed: int, epoch: int, ids: npt.ArrayLike, width: Ints, height: Ints) -> Params:
        """See `Transform.params`."""
        params = self.crop.params(seed, epoch, ids, width, height)
        keys = np.asarray(ids, np.int64)
        layers: list[Layer] = []
        choices: list[tuple[int, ...]] = []
        for policy in self.policies:
            layers += policy.layers(Draw(seed, epoch, keys, first=len(layers)), self.size)
            choices += policy.choices
        ops = None
        if layers:
            ops = Ops(
                op=np.stack([op for op, _ in layers], axis=1),
                arg=np.stack([arg for _, arg in layers], axis=1).astype(np.float32),
                choices=tuple(choices),
            )
        erase = self.erasing.draw(seed, epoch, keys, self.size) if self.erasing else None
        return replace(params, ops=ops, erase=erase)
