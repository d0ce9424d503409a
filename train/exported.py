"""What a file that `python -m train export --format safetensors` wrote says of the images that it is for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors

from loader.params import INTERPOLATIONS
from shard.errors import FeedlineError


def images(path: Path) -> dict[str, Any]:
    """Values mean, std, resize, crop and interpolation of the header, without reading weights; {} of any other file.

    Raises:
        FeedlineError: the header is ours, and something of it cannot be understood.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            about: dict[str, str] = file.metadata() or {}
    except (safetensors.SafetensorError, OSError):
        return {}  # who reads the weights says what is wrong
    if not about.keys() >= {"arch", "transform"}:
        return {}
    mean = _entry(path, about, "mean", _is_color, "three numbers")
    std = _entry(path, about, "std", lambda std: _is_color(std) and min(std) > 0, "three positive numbers")
    wanted = f"an object of resize, crop (pixels) and interpolation ({' or '.join(INTERPOLATIONS)})"
    transform = _entry(path, about, "transform", _is_transform, wanted)
    return {"mean": tuple(mean), "std": tuple(std), **transform}


def _entry(path: Path, about: dict[str, str], key: str, fits: Callable[[Any], bool], wanted: str) -> Any:
    if key not in about:
        raise FeedlineError(f"pretrained: the header of {path} has no {key}; export the run again")
    try:
        value = json.loads(about[key])
    except ValueError:
        value = None
    if not fits(value):
        raise FeedlineError(
            f"pretrained: {key} in the header of {path} is {about[key]!r}, not {wanted}; export the run again"
        )
    return value


def _is_color(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(part) in (int, float) and math.isfinite(part) for part in value)
    )


def _is_transform(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() >= {"resize", "crop", "interpolation"}
        and all(type(value[key]) is int and value[key] > 0 for key in ("resize", "crop"))
        and value["interpolation"] in INTERPOLATIONS
    )
