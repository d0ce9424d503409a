"""The operations of `loader.ops` inside a DALI graph, on the CPU or a GPU.

Written against Pillow's definitions, its truncation of blends included. Each is a function of images, uint8
[H, W, 3], and of the arguments of its sample, float32 [ARGS] on the CPU; the graph sends every sample through one
of them by conditional execution, as DALI's own `auto_aug` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from nvidia.dali import fn, math, types

from loader.ops import Op

Node = Any  # nvidia.dali.data_node.DataNode has no type stubs
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_EPSILON = 1e-3  # what should be whole may be a little less, and would be cut off to one less
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH


def apply_layers(images: Node, inputs: list[Node], choices: tuple[tuple[int, ...], ...], gpu: bool) -> Node:
    """Send images through one operation per layer; to be called inside a graph with conditionals.

    Args:
        images: uint8 [H, W, 3].
        inputs: for every layer the operation, int32 scalar, and its arguments, float32 [ARGS], on the CPU.
        choices: per layer the operations that may come.
        gpu: whether images are on a GPU.
    """
    # DALI rewrites this function for its conditionals, and does not know zip's strict.
    for k in range(len(choices)):
        codes = sorted({int(Op.IDENTITY), *[int(code) for code in choices[k]]})
        images = _select(images, inputs[2 * k], inputs[2 * k + 1], codes, gpu)
    return images


def _select(images: Node, op: Node, arg: Node, codes: list[int], gpu: bool) -> Node:
    # DALI's conditionals split a batch in two, so that a choice of n is a tree; they want one return at the end.
    if len(codes) == 1:
        result = _OPERATIONS[codes[0]](images, arg, gpu)
    else:
        half = len(codes) // 2
        if op < codes[half]:
            result = _select(images, op, arg, codes[:half], gpu)
        else:
            result = _select(images, op, arg, codes[half:], gpu)
    return result


def _on(node: Node, gpu: bool) -> Node:
    return node.gpu() if gpu else node


def _float(images: Node) -> Node:
    return fn.cast(images, dtype=types.FLOAT)


def _whole(images: Node) -> Node:
    """Cut off as C does, and saturate."""
    return fn.cast(math.floor(images), dtype=types.UINT8)


def _blend(base: Node, images: Node, factor: Node) -> Node:
    return _whole(base + (_float(images) - base) * factor)


def _grey(images: Node) -> Node:
    """Rounded luma, float [H, W, 1]."""
    luma = fn.reductions.sum(_float(images) * types.Constant(_LUMA), axes=[2], keep_dims=True)
    return math.floor(luma + 0.5)


def _affine(images: Node, arg: Node, gpu: bool) -> Node:
    # The operator fills with one number for all channels: the fill colour becomes 0 for a while.
    fill, matrix = _on(fn.cast(arg[6:9], dtype=types.INT16), gpu), _matrix(arg)
    moved = fn.warp_affine(
        fn.cast(images, dtype=types.INT16) - fill, matrix=matrix, interp_type=types.INTERP_NN, fill_value=0
    )
    return fn.cast(moved + fill, dtype=types.UINT8)


def _affine_linear(images: Node, arg: Node, gpu: bool) -> Node:
    # As Pillow: interpolated with the border repeated outside, and only then filled. So a mask is moved too.
    fill, matrix = _on(arg[6:9], gpu), _matrix(arg)
    moved = fn.warp_affine(images, matrix=matrix, interp_type=types.INTERP_LINEAR, dtype=types.FLOAT)
    ones = images[:, :, 0:1] * types.Constant(0, dtype=types.UINT8) + types.Constant(1, dtype=types.UINT8)
    inside = _float(fn.warp_affine(ones, matrix=matrix, interp_type=types.INTERP_NN, fill_value=0))
    return _whole(moved * inside + fill * (1.0 - inside) + _EPSILON)


def _matrix(arg: Node) -> Node:
    return fn.reshape(arg[0:6], shape=[2, 3])


def _contrast(images: Node, arg: Node, gpu: bool) -> Node:
    mean = math.floor(fn.reductions.mean(_grey(images), axes=[0, 1], keep_dims=True) + 0.5)
    return _blend(mean, images, _on(arg[0], gpu))


def _sharpness(images: Node, arg: Node, gpu: bool) -> Node:
    smooth = fn.filter(images, types.Constant(_SMOOTH, device="gpu" if gpu else "cpu"))
    return _blend(_float(smooth), images, _on(arg[0], gpu))


def _hue(images: Node, arg: Node, gpu: bool) -> Node:
    red, green, blue = (_float(images[:, :, k : k + 1]) for k in range(3))
    value = math.max(red, math.max(green, blue))
    chroma = value - math.min(red, math.min(green, blue))
    divisor = math.max(
        chroma, 1.0
    )  # of whole numbers: 0 only where all are equal, and then it does not matter
    is_red = _float(value == red)
    is_green = _float(value == green) * (1.0 - is_red)
    is_blue = 1.0 - is_red - is_green
    sixth = (
        is_red * (green - blue) / divisor
        + is_green * ((blue - red) / divisor + 2.0)
        + is_blue * ((red - green) / divisor + 4.0)
    )
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = sixth + (_on(arg[0], gpu) * 6.0 + n)
        k = k - 6.0 * math.floor(k / 6.0)
        channels.append(value - chroma * math.clamp(math.min(k, 4.0 - k), 0.0, 1.0))
    return fn.cast(fn.cat(*channels, axis=2), dtype=types.UINT8)


def _posterize(images: Node, arg: Node, gpu: bool) -> Node:
    mask = fn.cast(256.0 - math.pow(2.0, 8.0 - arg[0]), dtype=types.UINT8)
    return images & _on(mask, gpu)


def _solarize(images: Node, arg: Node, gpu: bool) -> Node:
    threshold = _on(arg[0], gpu)
    kept, inverted = images < threshold, images >= threshold
    return images * fn.cast(kept, dtype=types.UINT8) + _invert(images, arg, gpu) * fn.cast(
        inverted, dtype=types.UINT8
    )


def _solarize_add(images: Node, arg: Node, gpu: bool) -> Node:
    add = _on(fn.cast(arg[0], dtype=types.UINT8), gpu)  # at most 128, so that nothing overflows below 128
    return images + fn.cast(images < 128, dtype=types.UINT8) * add


def _invert(images: Node, arg: Node, gpu: bool) -> Node:
    return types.Constant(255, dtype=types.UINT8) - images


def _autocontrast(images: Node, arg: Node, gpu: bool) -> Node:
    low = _float(fn.reductions.min(images, axes=[0, 1], keep_dims=True))
    high = _float(fn.reductions.max(images, axes=[0, 1], keep_dims=True))
    flat = _float(high == low)
    stretched = (_float(images) - low) * (255.0 / math.max(high - low, 1.0))
    return _whole(stretched * (1.0 - flat) + _float(images) * flat + _EPSILON)


def _grayscale(images: Node, arg: Node, gpu: bool) -> Node:
    grey = fn.cast(_grey(images), dtype=types.UINT8)
    return fn.cat(grey, grey, grey, axis=2)


_OPERATIONS: dict[int, Callable[[Node, Node, bool], Node]] = {
    Op.IDENTITY: lambda images, arg, gpu: images,
    Op.AFFINE: _affine,
    Op.AFFINE_LINEAR: _affine_linear,
    Op.BRIGHTNESS: lambda images, arg, gpu: _whole(_float(images) * _on(arg[0], gpu)),
    Op.CONTRAST: _contrast,
    Op.COLOR: lambda images, arg, gpu: _blend(_grey(images), images, _on(arg[0], gpu)),
    Op.SHARPNESS: _sharpness,
    Op.HUE: _hue,
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: _solarize,
    Op.SOLARIZE_ADD: _solarize_add,
    Op.AUTOCONTRAST: _autocontrast,
    Op.EQUALIZE: lambda images, arg, gpu: fn.equalize(images),
    Op.INVERT: _invert,
    Op.GRAYSCALE: _grayscale,
    Op.BLUR: lambda images, arg, gpu: fn.gaussian_blur(images, sigma=arg[0]),
}
