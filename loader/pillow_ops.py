"""Operations on the CPU, by Pillow."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from loader.ops import Op

Args = list[float]


def apply(image: npt.NDArray[np.uint8], ops: list[int], args: list[Args]) -> None:
    """Put `image`, uint8 [H, W, 3], through operations with their arguments, in place."""
    if not any(ops):
        return
    height, width, _ = image.shape
    picture = Image.frombytes("RGB", (width, height), image.tobytes())
    for op, arg in zip(ops, args, strict=True):
        if op != Op.IDENTITY:
            picture = _OPERATIONS[op](picture, arg)
    image[:] = np.asarray(picture)


def _affine(resample: Image.Resampling) -> Callable[[Image.Image, Args], Image.Image]:
    def run(picture: Image.Image, arg: Args) -> Image.Image:
        fill = (round(arg[6]), round(arg[7]), round(arg[8]))
        return picture.transform(
            picture.size, Image.Transform.AFFINE, tuple(arg[:6]), resample=resample, fillcolor=fill
        )

    return run


def _hue(picture: Image.Image, arg: Args) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    shift = int(arg[0] * 255) % 256
    turned = hue.point([(i + shift) % 256 for i in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def _solarize_add(picture: Image.Image, arg: Args) -> Image.Image:
    table = [min(255, i + round(arg[0])) if i < 128 else i for i in range(256)]
    return picture.point(table * 3)


def _posterize(picture: Image.Image, arg: Args) -> Image.Image:
    # Not ImageOps.posterize: newer versions of Pillow refuse 0 bits, to which timm's increasing operation goes.
    mask = 256 - (1 << (8 - round(arg[0])))
    return picture.point([i & mask for i in range(256)] * 3)


def _equalize(picture: Image.Image, arg: Args) -> Image.Image:
    # ImageOps.equalize to the bit, whose loops in Python take 3 ms.
    histogram = np.array(picture.histogram()).reshape(3, 256)
    tables = np.tile(np.arange(256), (3, 1))
    for table, counts in zip(tables, histogram, strict=True):
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        if step:
            table[1:] = ((step // 2 + np.cumsum(counts)[:-1]) // step).clip(max=255)
            table[0] = step // 2 // step
    return picture.point(tables.ravel().tolist())


_OPERATIONS: dict[int, Callable[[Image.Image, Args], Image.Image]] = {
    Op.AFFINE: _affine(Image.Resampling.NEAREST),
    Op.AFFINE_LINEAR: _affine(Image.Resampling.BILINEAR),
    Op.BRIGHTNESS: lambda picture, arg: ImageEnhance.Brightness(picture).enhance(arg[0]),
    Op.CONTRAST: lambda picture, arg: ImageEnhance.Contrast(picture).enhance(arg[0]),
    Op.COLOR: lambda picture, arg: ImageEnhance.Color(picture).enhance(arg[0]),
    Op.SHARPNESS: lambda picture, arg: ImageEnhance.Sharpness(picture).enhance(arg[0]),
    Op.HUE: _hue,
    Op.POSTERIZE: _posterize,
    # i < threshold and i < ceil(threshold) are the same for whole i
    Op.SOLARIZE: lambda picture, arg: ImageOps.solarize(picture, math.ceil(arg[0])),
    Op.SOLARIZE_ADD: _solarize_add,
    Op.AUTOCONTRAST: lambda picture, arg: ImageOps.autocontrast(picture),
    Op.EQUALIZE: _equalize,
    Op.INVERT: lambda picture, arg: ImageOps.invert(picture),
    Op.GRAYSCALE: lambda picture, arg: picture.convert("L").convert("RGB"),
    Op.BLUR: lambda picture, arg: picture.filter(ImageFilter.GaussianBlur(arg[0])),
}
