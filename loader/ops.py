"""The operations that augmentation policies choose from, and the arguments each takes.

An operation works on a finished crop, uint8 [H, W, 3]. Which one, and its arguments, are arrays in `Params`:
`op` int32 [B, L] and `arg` float32 [B, L, ARGS] say that image b goes through operation op[b, 0] with arguments
arg[b, 0], then op[b, 1] …. Definitions are Pillow's, which timm and torchvision build on; `loader.cpu_ops`
applies them on the CPU, `loader.dali_ops` inside the DALI graph.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ARGS = 9  # of an affine map with a colour, the operation with the most


class Op(IntEnum):
    """An operation; what its arguments are stands behind it. The rest of a row of arguments is 0.

    The enhancing operations take a factor: 1 leaves the image alone, 0 gives black, grey or a smooth image.
    """

    IDENTITY = 0
    AFFINE = 1  # a b c d e f: output (x, y) shows input (ax + by + c, dx + ey + f), nearest pixel; then r g b outside
    AFFINE_LINEAR = 2  # the same, bilinear
    BRIGHTNESS = 3  # factor
    CONTRAST = 4  # factor, against the mean of the grey image
    COLOR = 5  # factor, against the grey image (saturation)
    SHARPNESS = 6  # factor, against a 3 × 3 smoothing
    HUE = 7  # shift in turns, -0.5 … 0.5, in HSV
    POSTERIZE = 8  # bits that are kept, 0 … 8
    SOLARIZE = 9  # threshold: values from it on are inverted
    SOLARIZE_ADD = 10  # added to values below 128
    AUTOCONTRAST = 11  # every channel stretched over 0 … 255
    EQUALIZE = 12  # histogram of every channel made flat
    INVERT = 13
    GRAYSCALE = 14
    BLUR = 15  # standard deviation in pixels of a Gaussian


def affine(matrix: tuple[npt.ArrayLike, ...], fill: tuple[int, int, int]) -> Floats:
    """Arguments [N, ARGS] of affine maps whose six entries are given as numbers or arrays [N]."""
    return np.stack(np.broadcast_arrays(*matrix, *fill), axis=-1).astype(np.float64).reshape(-1, ARGS)


def rotation(degrees: Floats, size: int, fill: tuple[int, int, int]) -> Floats:
    """Arguments of a rotation about the middle, counter-clockwise, as Pillow's `Image.rotate` has it."""
    angle, middle = np.radians(degrees), size / 2.0
    cos, sin = np.cos(angle), np.sin(angle)
    # The map from output to input turns the other way round; in image coordinates y points down.
    return affine(
        (cos, -sin, middle - middle * (cos - sin), sin, cos, middle - middle * (sin + cos)),
        fill,
    )


def single(value: npt.ArrayLike) -> Floats:
    """Arguments [N, ARGS] of operations that take one number, from numbers [N]."""
    first = np.atleast_1d(np.asarray(value, np.float64))
    arguments = np.zeros((len(first), ARGS))
    arguments[:, 0] = first
    return arguments
