"""Every augmentation operation against the library it is defined by, on finished crops of real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data import auto_augment as timm_ops
from torchvision.transforms.v2 import functional as vision

from loader import RandomResizedCrop
from loader.ops import Floats, Op, affine, rotation, single
from loader.params import Ops, Params
from loader.policies.base import MEAN
from loader.reader import ShardReader
from loader.resolve import make_backend, usable_cores
from shard.dataset import Split

Reference = Callable[[Image.Image, npt.NDArray[np.float32]], Image.Image]
_PIXELS = Image.Resampling


@dataclass(frozen=True, slots=True)
class Case:
    """One operation.

    Attributes:
        op: which.
        arguments: [N, ARGS] of numbers in 0 … 1 [N] and the size of the crop.
        library: that defines it.
        reference: the library's function.
        bounds: the stated bounds per backend, (mean, 99.9th percentile) in grey levels.
    """

    op: Op
    arguments: Callable[[Floats, int], Floats]
    library: str
    reference: Reference
    bounds: dict[str, tuple[float, float]]


def _bounds(
    torch_mean: float, torch_p: float, dali_mean: float, dali_p: float
) -> dict[str, tuple[float, float]]:
    return {"torch": (torch_mean, torch_p), "dali": (dali_mean, dali_p)}


_EXACT = _bounds(0, 0, 0.01, 1)
_GREY = _bounds(0.01, 1, 0.01, 1)
_LINEAR = _bounds(0.5, 1, 0.02, 1)


def _timm(name: str, resample: Any = None) -> Reference:
    function: Any = getattr(timm_ops, name)
    more: dict[str, Any] = {} if resample is None else {"fillcolor": MEAN, "resample": resample}

    def run(picture: Image.Image, arg: npt.NDArray[np.float32]) -> Image.Image:
        result: Image.Image = function(picture, float(arg[0]), **more)
        return result

    return run


def _affine(x: int, name: str) -> Reference:
    """Timm's function of the entry `x` of the matrix."""
    function: Any = getattr(timm_ops, name)
    return lambda picture, arg: function(picture, float(arg[x]), fillcolor=MEAN, resample=_PIXELS.BILINEAR)


def _rotate(resample: Any) -> Reference:
    return lambda picture, arg: timm_ops.rotate(
        picture, float(np.degrees(np.arctan2(arg[3], arg[0]))), fillcolor=MEAN, resample=resample
    )


def _vision(name: str) -> Reference:
    function: Any = getattr(vision, name)
    return lambda picture, arg: function(picture, float(arg[0]))


def _factor(u: Floats, size: int) -> Floats:
    return single(0.1 + 1.8 * u)


def _nothing(u: Floats, size: int) -> Floats:
    return single(0.0 * u)


# The torch backend rounds what it interpolates, Pillow cuts off. Where DALI differs: Pillow leaves the border alone
# where it sharpens; its hue is 8 bits wide; its Gaussian is three box filters; OpenCV's equalisation, which DALI has,
# leaves out the lowest value: images with flat dark areas show it.
CASES: dict[str, Case] = {
    "rotate": Case(
        Op.AFFINE_LINEAR, lambda u, n: rotation(60 * u - 30, n, MEAN), "timm", _rotate(_PIXELS.BILINEAR),
        _LINEAR,
    ),
    "rotate, nearest": Case(
        Op.AFFINE, lambda u, n: rotation(270 * u - 135, n, MEAN), "timm", _rotate(_PIXELS.NEAREST),
        _bounds(0.02, 1, 0.02, 1),
    ),
    "shear x": Case(
        Op.AFFINE_LINEAR, lambda u, n: affine((1, 0.6 * u - 0.3, 0, 0, 1, 0), MEAN), "timm",
        _affine(1, "shear_x"), _LINEAR,
    ),
    "shear y": Case(
        Op.AFFINE_LINEAR, lambda u, n: affine((1, 0, 0, 0.6 * u - 0.3, 1, 0), MEAN), "timm",
        _affine(3, "shear_y"), _LINEAR,
    ),
    "translate x": Case(
        Op.AFFINE_LINEAR, lambda u, n: affine((1, 0, n * (0.9 * u - 0.45), 0, 1, 0), MEAN), "timm",
        _affine(2, "translate_x_abs"), _LINEAR,
    ),
    "translate y": Case(
        Op.AFFINE_LINEAR, lambda u, n: affine((1, 0, 0, 0, 1, n * (0.9 * u - 0.45)), MEAN), "timm",
        _affine(5, "translate_y_abs"), _LINEAR,
    ),
    "brightness": Case(Op.BRIGHTNESS, _factor, "timm", _timm("brightness"), _EXACT),
    "contrast": Case(Op.CONTRAST, _factor, "timm", _timm("contrast"), _EXACT),
    "saturation": Case(Op.COLOR, _factor, "timm", _timm("color"), _GREY),
    "sharpness": Case(Op.SHARPNESS, _factor, "timm", _timm("sharpness"), _bounds(0.01, 1, 0.1, 15)),
    "hue": Case(Op.HUE, lambda u, n: single(u - 0.5), "torchvision", _vision("adjust_hue"), _bounds(0, 0, 0.6, 10)),
    "posterize": Case(
        Op.POSTERIZE, lambda u, n: single(1 + np.trunc(7.9 * u)), "timm",
        lambda picture, arg: timm_ops.posterize(picture, int(arg[0])), _EXACT,
    ),
    "solarize": Case(
        Op.SOLARIZE, lambda u, n: single(np.trunc(256 * u)), "timm",
        lambda picture, arg: timm_ops.solarize(picture, int(arg[0])), _EXACT,
    ),
    "solarize add": Case(
        Op.SOLARIZE_ADD, lambda u, n: single(np.trunc(110 * u)), "timm",
        lambda picture, arg: timm_ops.solarize_add(picture, int(arg[0])), _EXACT,
    ),
    "autocontrast": Case(
        Op.AUTOCONTRAST, _nothing, "timm", lambda picture, arg: timm_ops.auto_contrast(picture),
        _EXACT,
    ),
    "equalize": Case(
        Op.EQUALIZE, _nothing, "timm", lambda picture, arg: timm_ops.equalize(picture), _bounds(0, 0, 4, 128)
    ),
    "invert": Case(Op.INVERT, _nothing, "timm", lambda picture, arg: timm_ops.invert(picture), _EXACT),
    "grayscale": Case(
        Op.GRAYSCALE, _nothing, "torchvision", lambda picture, arg: vision.rgb_to_grayscale(picture, 3), _GREY
    ),
    "gaussian blur": Case(
        Op.BLUR, lambda u, n: single(0.1 + 1.9 * u), "timm", _timm("gaussian_blur"), _bounds(0, 0, 0.8, 12)
    ),
}  # fmt: skip


def operations(
    split: Split, images: int, size: int, device: torch.device, backends: list[str]
) -> list[dict[str, Any]]:
    """Compare every operation on the first `images` images of a split.

    Returns:
        A row per operation and backend: operation, library, backend, images, mean, p99.9, max (grey levels), and the
        stated bounds.
    """
    ids = np.arange(min(images, len(split)))
    reader = ShardReader(split)
    encoded = reader.read(ids)
    crop = RandomResizedCrop(size=size).params(0, 0, ids, split.width[ids], split.height[ids])
    rows = []
    for name in backends:
        backend = make_backend(name, device, usable_cores(), len(ids))

        def decode(params: Params, backend: Any = backend) -> npt.NDArray[np.uint8]:
            pixels: npt.NDArray[np.uint8] = (
                backend.submit(encoded, params, len(ids))().images.cpu().numpy().copy()
            )
            return pixels

        plain = decode(crop)
        for title, case in CASES.items():
            arg = case.arguments(np.random.default_rng(0).uniform(size=len(ids)), size).astype(np.float32)
            code = np.full((len(ids), 1), int(case.op), np.int32)
            ops = Ops(op=code, arg=arg[:, None], choices=((int(case.op),),))
            expected = [
                np.asarray(case.reference(Image.fromarray(image), a))
                for image, a in zip(plain, arg, strict=True)
            ]
            difference = np.abs(decode(replace(crop, ops=ops)).astype(int) - np.stack(expected))
            mean, p = case.bounds[name]
            rows.append(
                {
                    "operation": title, "library": case.library, "backend": name, "images": len(ids),
                    "mean": float(difference.mean()), "p99.9": float(np.quantile(difference, 0.999)),
                    "max": int(difference.max()), "mean_bound": mean, "p99.9_bound": p,
                }
            )  # fmt: skip
        backend.close()
    reader.close()
    return rows


def within(row: dict[str, Any]) -> bool:
    """Whether a row of `operations` keeps its bounds."""
    return bool(row["mean"] <= row["mean_bound"] and row["p99.9"] <= row["p99.9_bound"])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of `operations`."""
    lines = [
        "| operation | compared with | backend | mean | p99.9 | max | bound of mean, p99.9 |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['operation']} | {r['library']} | {r['backend']} | {r['mean']:.3f} | {r['p99.9']:.0f} | {r['max']} | "
        f"{r['mean_bound']:g}, {r['p99.9_bound']:g} |"
        for r in rows
    ]
    return "\n".join(lines)
