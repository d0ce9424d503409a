"""What a file that `python -m train export --format safetensors` wrote says of its images and classes."""

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
    about = _header(path)
    if not about:
        return {}
    mean = _entry(path, about, "mean", _is_color, "three numbers")
    std = _entry(path, about, "std", lambda std: _is_color(std) and min(std) > 0, "three positive numbers")
    wanted = f"an object of resize, crop (pixels) and interpolation ({' or '.join(INTERPOLATIONS)})"
    transform = _entry(path, about, "transform", _is_transform, wanted)
    return {"mean": tuple(mean), "std": tuple(std), **transform}


def classes(path: Path) -> list[str] | None:
    """Names of what its head tells apart, by label; None of any other file.

    Raises:
        FeedlineError: the header is ours, and they cannot be understood.
    """
    about = _header(path)
    found: list[str] | None = _entry(path, about, "classes", _is_names, "a list of names") if about else None
    return found


def _header(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            about: dict[str, str] = file.metadata() or {}
    except (safetensors.SafetensorError, OSError):
        return {}  # who reads the weights says what is wrong
    return about if about.keys() >= {"arch", "transform"} else {}


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


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


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
