"""A folder like those on the Hugging Face hub: config.json and model.safetensors.

timm reads it (`timm.create_model("local-dir:FOLDER", pretrained=True)`), and so does transformers
(`AutoModelForImageClassification.from_pretrained(FOLDER)`), both offline.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
from torch import nn

from shard.errors import FeedlineError
from train.arguments import parse_arguments
from train.trained import Trained

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_OF_THE_RUN = ("feedline", "run", "checkpoint", "epoch", "averaged", "top1", "map", "activation")
# What timm knows of an architecture, whatever weights are in it.
_OF_THE_ARCH = ("first_conv", "classifier", "pool_size", "fixed_input_size")


def check_arch(trained: Trained) -> None:
    """Refuse what timm could not build again.

    Raises:
        FeedlineError: a model with blurpool or another head, which timm does not know of.
    """
    if trained.config.model.blurpool:
        raise FeedlineError(
            "--format timm: the run has blurpool, with which timm cannot build a model; use --format onnx, "
            "torch.export or safetensors"
        )
    if trained.config.model.head != "linear":
        raise FeedlineError(
            f"--format timm: the run has --head {trained.config.model.head}, which timm cannot build; use --format "
            "onnx, torch.export or safetensors"
        )


def write_timm(trained: Trained, about: dict[str, str], path: Path) -> None:
    """Fill the folder `path`."""
    path.mkdir()
    save_weights(trained, {"format": "pt"}, path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps(_config(trained, about), indent=2) + "\n", encoding="utf-8")


def not_exported(path: Path) -> list[str]:
    """Names in the folder `path` that no export has written: all, where its config.json is another program's."""
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    ours = (CONFIG, WEIGHTS) if isinstance(config, dict) and "feedline" in config else ()
    return sorted(file.name for file in path.iterdir() if file.name not in ours)


def save_weights(trained: Trained, metadata: dict[str, str], path: Path) -> None:
    """Write the bare model's weights as safetensors.

    Raises:
        OSError: the disk does not take them; safetensors itself raises another error, of its own.
    """
    try:
        safetensors.torch.save_file(trained.net.model.state_dict(), path, metadata=metadata)
    except safetensors.SafetensorError as error:
        raise OSError(str(error).removeprefix("Error while serializing: I/O error: ")) from error


def read_timm(path: Path) -> nn.Module:
    """The model that timm makes of the folder."""
    model: nn.Module = timm.create_model(f"local-dir:{path}", pretrained=True)
    return model


def crop_pct(size: int, resize: int) -> float:
    """Share of the resized image that a crop of `size` keeps, such that timm's floor(size / crop_pct) is `resize`."""
    share = size / resize
    while math.floor(size / share) < resize:
        share = math.nextafter(share, 0)
    return share


def _config(trained: Trained, about: dict[str, str]) -> dict[str, Any]:
    model: Any = trained.net.model
    transform, classes = json.loads(about["transform"]), list(trained.classes)
    known = getattr(model, "pretrained_cfg", None) or {}
    readable = json.loads(about["class_names"])
    return {
        "architecture": trained.config.model.arch,
        "num_classes": len(classes),
        "num_features": model.num_features,
        "model_args": parse_arguments("model_args", trained.config.model.model_args),
        "label_names": classes,
        "label_descriptions": dict(zip(classes, readable, strict=True)),
        "pretrained_cfg": {
            "custom_load": False,
            "num_classes": len(classes),
            "input_size": [3, transform["crop"], transform["crop"]],
            "interpolation": transform["interpolation"],
            "crop_pct": crop_pct(transform["crop"], transform["resize"]),
            "crop_mode": "center",
            "mean": json.loads(about["mean"]),
            "std": json.loads(about["std"]),
            **{key: known[key] for key in _OF_THE_ARCH if key in known},
        },
        # As transformers calls it; it makes sigmoid the activation.
        **({"problem_type": "multi_label_classification"} if trained.multi_label else {}),
        "feedline": {key: about[key] for key in _OF_THE_RUN if key in about},
    }
