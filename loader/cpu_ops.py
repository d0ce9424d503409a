"""Operations on the CPU, by OpenCV with Pillow's arithmetic, and by Pillow itself where OpenCV's definition differs.

Pillow alone would need three times the time: it converts every image to its own layout and back, and interpolates
without vector instructions. Differences are stated in `bench.operations` and tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from loader.ops import Op

Args = list[float]
Picture = npt.NDArray[np.uint8]
_LEVELS = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH
_TRUNCATE = -0.499  # OpenCV rounds, Pillow cuts off; not quite half, so that whole numbers stay


def apply(image: Picture, ops: list[int], args: list[Args]) -> None:
    """Put `image`, uint8 [H, W, 3], through operations with their arguments, in place."""
    for op, arg in zip(ops, args, strict=True):
        if op != Op.IDENTITY:
            _OPERATIONS[op](image, arg)


def _look_up(table: npt.NDArray[np.generic], image: Picture) -> None:
    """Replace values by a table [256], or [256, 3] of one column per channel."""
    levels = table.clip(0, 255).astype(np.uint8)
    cv2.LUT(image, levels if levels.ndim == 1 else levels[None], dst=image)


def _blend(image: Picture, base: Picture, factor: float) -> None:
    cv2.addWeighted(image, factor, base, 1.0 - factor, _TRUNCATE, dst=image)


def _grey(image: Picture) -> Picture:
    grey: Picture = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return grey


def _map(arg: Args, shift: float) -> npt.NDArray[np.float64]:
    """Matrix for OpenCV, which counts from the middle of a pixel; `shift` moves the source."""
    a, b, c, d, e, f = arg[:6]
    return np.array([[a, b, (a + b - 1) / 2 + c + shift], [d, e, (d + e - 1) / 2 + f + shift]])


def _affine(image: Picture, arg: Args) -> None:
    size = image.shape[1::-1]
    cv2.warpAffine(
        image.copy(), _map(arg, 0), size, dst=image, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT, borderValue=arg[6:9],
    )  # fmt: skip


def _affine_linear(image: Picture, arg: Args) -> None:
    # As Pillow: interpolated with the border repeated outside, and only then filled. A padded source is faster than
    # OpenCV's own repeating border.
    size = image.shape[1::-1]
    inverse = cv2.WARP_INVERSE_MAP
    padded = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    moved = cv2.warpAffine(padded, _map(arg, 1), size, flags=cv2.INTER_LINEAR | inverse)
    inside = cv2.warpAffine(
        np.full(image.shape[:2], 255, np.uint8), _map(arg, 0), size, flags=cv2.INTER_NEAREST | inverse
    )
    cv2.rectangle(image, (0, 0), size, arg[6:9], cv2.FILLED)
    cv2.copyTo(moved, inside, dst=image)


def _contrast(image: Picture, arg: Args) -> None:
    mean = np.float32(int(cv2.mean(_grey(image))[0] + 0.5))
    _look_up(mean + np.float32(arg[0]) * (_LEVELS - mean), image)


def _sharpness(image: Picture, arg: Args) -> None:
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    for edge in (np.s_[:: len(image) - 1], np.s_[:, :: image.shape[1] - 1]):
        smooth[edge] = image[edge]  # Pillow leaves the border alone
    _blend(image, smooth, arg[0])


def _hue(image: Picture, arg: Args) -> None:
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    shift = int(arg[0] * 255) % 256
    turned = hue.point([(i + shift) % 256 for i in range(256)])
    image[:] = np.asarray(Image.merge("HSV", (turned, saturation, value)).convert("RGB"))


def _histogram(image: Picture) -> npt.NDArray[np.int64]:
    """Counts [256, 3]."""
    channels = [cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    return np.stack(channels, axis=1).astype(np.int64)


def _autocontrast(image: Picture, arg: Args) -> None:
    table = np.tile(_LEVELS[:, None].astype(np.float64), 3)
    for column, counts in zip(table.T, _histogram(image).T, strict=True):
        low, high = np.flatnonzero(counts)[[0, -1]]
        if high > low:
            scale = 255.0 / (high - low)
            column[:] = np.trunc(_LEVELS * scale - low * scale)
    _look_up(table, image)


def _equalize(image: Picture, arg: Args) -> None:
    table = np.tile(_LEVELS[:, None], 3)
    for column, counts in zip(table.T, _histogram(image).T, strict=True):
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        if step:
            column[1:] = (step // 2 + np.cumsum(counts)[:-1]) // step
            column[0] = step // 2 // step
    _look_up(table, image)


def _grayscale(image: Picture, arg: Args) -> None:
    cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB, dst=image)


def _blur(image: Picture, arg: Args) -> None:
    image[:] = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(arg[0])))


_OPERATIONS: dict[int, Callable[[Picture, Args], None]] = {
    Op.AFFINE: _affine,
    Op.AFFINE_LINEAR: _affine_linear,
    Op.BRIGHTNESS: lambda image, arg: _look_up(_LEVELS * np.float32(arg[0]), image),
    Op.CONTRAST: _contrast,
    Op.COLOR: lambda image, arg: _blend(image, cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB), arg[0]),
    Op.SHARPNESS: _sharpness,
    Op.HUE: _hue,
    # 0 bits, to which timm's increasing operation goes, are black.
    Op.POSTERIZE: lambda image, arg: _look_up(_LEVELS & 256 - (1 << (8 - round(arg[0]))), image),
    # i < threshold and i < ceil(threshold) are the same for whole i
    Op.SOLARIZE: lambda image, arg: _look_up(
        np.where(math.ceil(arg[0]) > _LEVELS, _LEVELS, 255 - _LEVELS), image
    ),
    Op.SOLARIZE_ADD: lambda image, arg: _look_up(_LEVELS + (_LEVELS < 128) * round(arg[0]), image),
    Op.AUTOCONTRAST: _autocontrast,
    Op.EQUALIZE: _equalize,
    Op.INVERT: lambda image, arg: _look_up(255 - _LEVELS, image),
    Op.GRAYSCALE: _grayscale,
    Op.BLUR: _blur,
}
