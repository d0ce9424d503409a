"""Images so narrow that resizing their shorter side makes the other one gigabytes long.

Of the resized image only what lies in the output is computed, by Pillow's resize of a box, whose filter looks beyond
the box as far as it reaches; of the source only what the filter looks at is decoded. The pixels are those of resizing
all of it and cropping then.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import PIL.Image

from loader.jpeg import Decoder, Image
from loader.params import Params
from loader.reader import Encoded

MOST_PIXELS = 1 << 22  # of a resized image; of a shorter side of 256 the longer one is then 64 times as long
_REACH = 2  # source pixels that the wider filter looks to either side, bicubic; times the reduction

Decode = Callable[[int, int, int, int], Image]  # top, left, height and width to uint8 [height, width, 3]


def too_long(params: Params) -> npt.NDArray[np.bool_]:
    """Which of B images are not to be resized whole: bool [B]."""
    long: npt.NDArray[np.bool_] = params.resized.astype(np.int64).prod(axis=1) > MOST_PIXELS
    return long & params.shifted


def cut(decode: Decode, params: Params, row: int) -> Image:
    """Output of a row before it is flipped: uint8 [size, size, 3], black outside of the resized image.

    Raises:
        ValueError: from `decode`.
    """
    start, length = params.window[row, :2].tolist(), params.window[row, 2:].tolist()
    sides = [_side(params, row, axis, length[axis]) for axis in (0, 1)]
    (top, bottom), (left, right) = (needed for _, _, needed in sides)
    pixels = np.ascontiguousarray(decode(start[0] + top, start[1] + left, bottom - top, right - left))
    rows, columns = (inside for inside, _, _ in sides)
    (y0, y1), (x0, x1) = (box for _, box, _ in sides)
    out = np.zeros((params.size, params.size, 3), np.uint8)
    resized = PIL.Image.fromarray(pixels).resize(
        (columns.stop - columns.start, rows.stop - rows.start),
        PIL.Image.Resampling[params.interpolation.upper()],
        box=(x0 - left, y0 - top, x1 - left, y1 - top),
    )
    out[rows, columns] = np.asarray(resized)
    return out


def _side(
    params: Params, row: int, axis: int, length: int
) -> tuple[slice, tuple[float, float], tuple[int, int]]:
    """Along one side: where in the output, from where in the source, and what of it the filter looks at."""
    resized, offset = int(params.resized[row, axis]), int(params.offset[row, axis])
    first, last = max(offset, 0), min(offset + params.size, resized)
    scale = length / resized
    margin = _REACH * max(scale, 1)
    box = first * length / resized, last * length / resized
    needed = max(0, math.floor(box[0] - margin)), min(length, math.ceil(box[1] + margin))
    return slice(first - offset, last - offset), box, needed


def cut_beforehand(encoded: list[Encoded], params: Params) -> tuple[list[Encoded], Params, dict[int, str]]:
    """For a decoder that cannot do that: in place of images that are too long, their crops as PNGs.

    Returns:
        images and parameters for the decoder, and reasons by row of images that do not decode; these are black.
    """
    bad: dict[int, str] = {}
    rows = np.flatnonzero(too_long(params)).tolist()
    if not rows:
        return encoded, params, bad
    encoded, decoder = list(encoded), Decoder()
    window, resized, offset = params.window.copy(), params.resized.copy(), params.offset.copy()
    for row in rows:
        try:
            crop = cut(partial(decoder.window, encoded[row]), params, row)
        except ValueError as error:
            bad[row], crop = str(error), np.zeros((params.size, params.size, 3), np.uint8)
        encoded[row] = _as_png(crop)
        window[row] = 0, 0, params.size, params.size
        resized[row], offset[row] = params.size, 0
    return encoded, replace(params, window=window, resized=resized, offset=offset), bad


def _as_png(pixels: Image) -> Encoded:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return np.frombuffer(buffer.getvalue(), np.uint8)
