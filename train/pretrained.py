"""Pretrained weights: where they are, what images they were trained on, and how they get into a model."""

from __future__ import annotations

import difflib
import json
import math
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg, load_state_dict
from torch import nn

from loader.params import INTERPOLATIONS
from shard.errors import FeedlineError
from train import checkpoint, exported
from train.checkpoint import DamagedError, verify
from train.head import in_head
from train.naming import nearest

FROM_TIMM = Path("timm")
Color = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnInput:
    """The images that weights were trained on.

    Attributes:
        source: where that stands, for people.
        mean: of red, green, blue, for pixels in 0 … 1.
        std: standard deviation of them.
        size: side of training images, pixels.
        eval_size: side of the crop in evaluation, pixels.
        eval_resize: shorter side before that crop, pixels.
        interpolation: of the resize.
    """

    source: str
    mean: Color
    std: Color
    size: int
    eval_size: int
    eval_resize: int
    interpolation: str


def weights_file(pretrained: Path) -> Path:
    """The file of weights: `pretrained` itself, the best checkpoint of a run folder, or of a Hugging Face folder.

    Raises:
        FeedlineError: there is none.
    """
    if pretrained.is_dir():
        for path in (pretrained / "checkpoints" / "best.pt", pretrained / "model.safetensors"):
            if path.is_file():
                return path
        raise FeedlineError(
            f"pretrained is {str(pretrained)!r}, a folder with neither checkpoints/best.pt (a run of ours) nor "
            "model.safetensors (as on the Hugging Face hub)"
        )
    if not pretrained.is_file():
        raise FeedlineError(
            f"pretrained is {str(pretrained)!r}, which is not a file; give weights (.pt, .pth, .safetensors), a "
            "folder, timm, or None to start from scratch"
        )
    return pretrained


def own_input(arch: str, pretrained: Path) -> OwnInput:
    """What the weights were trained on: as our checkpoint or export, config.json beside them, or timm of `arch` says.

    Args:
        arch: timm's name, perhaps with a tag (resnet50.a1_in1k).
        pretrained: file, folder, or `FROM_TIMM`.

    Raises:
        FeedlineError: there are no weights, they are for images that are not square, or our export is damaged.
    """
    if pretrained != FROM_TIMM:
        path = weights_file(pretrained)
        if ours := checkpoint.about(path):
            return _of_run(ours["config"], pretrained)
        if ours := exported.images(path):
            return _of_export(ours, pretrained)
        described = path.with_name("config.json")
        if pretrained.is_dir() and described.is_file():
            return _of_timm(_described(described), str(described))
    known = known_to_timm(arch)
    name = arch if known is None or not known.tag or "." in arch else f"{arch}.{known.tag}"
    return _of_timm({} if known is None else known.to_dict(), f"timm of {name}")


def _described(path: Path) -> dict[str, Any]:
    """What config.json of a Hugging Face folder says about the images."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        about: dict[str, Any] = found.get("pretrained_cfg", found)
    except (OSError, ValueError, AttributeError) as error:
        raise FeedlineError(
            f"pretrained: {path} cannot be read: {error}; fetch it again, or give model.safetensors itself"
        ) from error
    return about


def known_to_timm(arch: str) -> PretrainedCfg | None:
    """What timm knows of the weights of a model; None: it has no such model.

    Raises:
        FeedlineError: the model is there, and has no weights of that tag.
    """
    try:
        return timm.get_pretrained_cfg(arch)
    except RuntimeError as error:
        name = arch.partition(".")[0]
        tags = [known for known in timm.list_pretrained(f"{name}.*") if known.partition(".")[0] == name]
        raise FeedlineError(
            f"arch is {arch!r}, a tag that timm does not have; {nearest(arch, tags)}"
        ) from error


def _of_run(config: dict[str, Any], pretrained: Path) -> OwnInput:
    model, given = config["model"], config["input"]
    return OwnInput(
        source=str(pretrained),
        mean=tuple(model["mean"] or IMAGENET_DEFAULT_MEAN),
        std=tuple(model["std"] or IMAGENET_DEFAULT_STD),
        size=given["size"],
        eval_size=given["eval_size"],
        eval_resize=given["eval_resize"],
        interpolation=given["interpolation"],
    )


def _of_export(images: dict[str, Any], pretrained: Path) -> OwnInput:
    return OwnInput(
        source=str(pretrained),
        mean=images["mean"],
        std=images["std"],
        size=images["crop"],  # an export is for evaluation, and does not know of another
        eval_size=images["crop"],
        eval_resize=images["resize"],
        interpolation=images["interpolation"],
    )


def _of_timm(known: dict[str, Any], source: str) -> OwnInput:
    found = resolve_data_config({}, pretrained_cfg=known)
    _, height, width = found["input_size"]
    if height != width:
        raise FeedlineError(
            f"{source} has images of {width} × {height} px; only square ones can be trained on"
        )
    interpolation = found["interpolation"]
    if interpolation not in INTERPOLATIONS:
        source, interpolation = f"{source} ({interpolation}, which is not to be had: bicubic)", "bicubic"
    if found["crop_mode"] != "center":
        source = f"{source} (crop {found['crop_mode']}, which is not to be had: the centre)"
    return OwnInput(
        source=source,
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        size=width,
        eval_size=width,
        eval_resize=math.floor(width / found["crop_pct"]),  # as timm's transform rounds
        interpolation=interpolation,
    )


def has_timms_labels(arch: str, classes: Sequence[str]) -> bool:
    """Whether timm's weights of `arch` tell these classes apart, in this order: those of an ImageNet, by wnid."""
    known = known_to_timm(arch)
    if known is None or known.num_classes != len(classes):
        return False
    subset = infer_imagenet_subset(known.to_dict())
    return subset is not None and list(classes) == ImageNetInfo(subset).label_names()


def load_pretrained(model: nn.Module, path: Path, classes: Sequence[str] | None = None) -> bool:
    """Load weights into a bare timm model; a head of another size, or for other classes, keeps its random start.

    Args:
        model: whose weights they are.
        path: a file, or a folder that `weights_file` understands.
        classes: what the model is to tell apart; compared with those of a run or an export of ours, which say them.

    Returns:
        Whether the head's weights were loaded.

    Raises:
        FeedlineError: no such file, or tensors other than the head's are missing, unknown or of other sizes.
    """
    path = weights_file(path)
    weights, about = _read_weights(path), checkpoint.about(path)
    theirs = about.get("classes") or exported.classes(path)
    mine = model.state_dict()
    head = {name for name in mine | weights if in_head(name, model)}
    given = head & weights.keys()
    fits = bool(head) and all(k in mine and k in weights and mine[k].shape == weights[k].shape for k in head)
    same = theirs is None or classes is None or list(theirs) == list(classes)
    if given and not (fits and same):
        why = "for other classes" if fits else "of another size"
        print(f"{path}: its head is {why} and is left out ({', '.join(sorted(given))})", file=sys.stderr)
    if not (fits and same):
        weights = {k: v for k, v in weights.items() if k not in head}
    resized = {k for k, v in weights.items() if k in mine and v.shape != mine[k].shape}
    unknown, missing = weights.keys() - mine.keys(), mine.keys() - weights.keys() - head
    if resized or unknown or missing:
        raise FeedlineError(
            f"{path} does not fit the model: {_misfit(weights, mine, resized, unknown, missing)}; "
            + (
                f"it is of --arch {about['config']['model']['arch']}"
                if about
                else "is arch the model it is of?"
            )
        )
    model.load_state_dict(weights, strict=False)
    return fits and same


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from any file that timm reads.

    Raises:
        FeedlineError: damaged, or something else.
    """
    try:
        if zipfile.is_zipfile(path):
            verify(path)
        weights = load_state_dict(str(path))
    except DamagedError as error:
        raise FeedlineError(f"pretrained: {error}") from error
    # timm hands on whatever torch, pickle and safetensors say about bytes that they cannot read.
    except Exception as error:
        first = reason(error)
        raise FeedlineError(
            f"pretrained is {str(path)!r}, which cannot be read: it is damaged or no file of weights ({first})"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise FeedlineError(f"pretrained is {str(path)!r}, which is not a state dict: names with tensors")
    return weights


def reason(error: BaseException) -> str:
    """First line of what an exception says."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _misfit(
    weights: dict[str, torch.Tensor],
    mine: dict[str, torch.Tensor],
    resized: set[str],
    unknown: set[str],
    missing: set[str],
) -> str:
    """What of the weights is wrong, by kind, each with its first name."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} of its {len(mine)} tensors are missing, the first {min(missing)!r}")
    if unknown:
        near = difflib.get_close_matches(min(unknown), missing or mine, n=1)
        parts.append(
            f"{len(unknown)} are unknown to it, the first {min(unknown)!r}"
            + (f" (nearest: {near[0]!r})" if near else "")
        )
    if resized:
        name = min(resized)
        shapes = f"{tuple(weights[name].shape)} instead of {tuple(mine[name].shape)}"
        parts.append(f"{len(resized)} are of another shape, the first {name!r}: {shapes}")
    return "; ".join(parts)
