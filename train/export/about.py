"""What an exported file says of itself: everything that its user has to know beside the weights."""

from __future__ import annotations

import json

from shard.dataset import Dataset
from train.environment import package_version
from train.model import statistics
from train.models import OWN
from train.trained import Trained


def describe(trained: Trained, dataset: Dataset | None) -> dict[str, str]:
    """Names and values, all text; what is not a word is JSON.

    Args:
        trained: the run.
        dataset: the one of the run, for readable class names; None: classes are named as they are.

    Returns:
        feedline (version), arch, classes (list), class_names (list of readable ones), transform (object: resize, crop,
        interpolation), exif (apply: photos are turned upright as their camera noted, strip: they are not), limits
        (object: max_side, short_side to which larger images are reduced first, or null), mean, std (lists, for pixels
        in 0 … 1), own_arch (whether train.models has it and not timm), model_args (text as in --model-args), blurpool,
        head (linear or mlp), head_hidden, activation (what turns logits into probabilities: softmax, or sigmoid of a
        multi-label run), input, output, run, checkpoint, epoch, averaged, top1 (percent or null), map (the same of a
        multi-label run, which has no top1; else absent), flip_tta (whether top1 is the mean over mirror images).
    """
    config = trained.config
    mean, std = statistics(config.model)
    side = config.input.eval_size
    transform = {
        "resize": config.input.eval_resize,
        "crop": side,
        "interpolation": config.input.interpolation,
    }
    limits = {name: getattr(trained.images, name) for name in ("max_side", "short_side")}
    return {
        "feedline": package_version("feedline") or "unknown",
        "arch": config.model.arch,
        "own_arch": json.dumps(config.model.arch in OWN),
        "model_args": config.model.model_args,
        "blurpool": json.dumps(config.model.blurpool),
        "head": config.model.head,
        "head_hidden": json.dumps(config.model.head_hidden),
        "classes": json.dumps(trained.classes),
        "class_names": json.dumps(readable_names(trained, dataset)),
        "transform": json.dumps(transform),
        "exif": trained.images.exif,
        "limits": json.dumps(limits),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "activation": "sigmoid" if trained.multi_label else "softmax",  # whatever the loss was
        "input": f"images: uint8 [N, {side}, {side}, 3], red, green, blue",
        "output": f"logits: float32 [N, {len(trained.classes)}]",
        "run": trained.root.resolve().name,
        "checkpoint": trained.checkpoint.name,
        "epoch": json.dumps(trained.epoch),
        "averaged": json.dumps(trained.averaged),
        "top1": json.dumps(trained.top1),
        **({"map": json.dumps(trained.map)} if trained.multi_label else {}),
        "flip_tta": json.dumps(config.evaluation.flip_tta),
    }


def readable_names(trained: Trained, dataset: Dataset | None) -> list[str]:
    """Readable class names by label, as far as a dataset has classes of these names; else the names themselves."""
    if dataset is None:
        return list(trained.classes)
    named = dataset.manifest.get("class_names") or [""] * len(dataset.classes)
    found = dict(zip(dataset.classes, named, strict=True))
    return [found.get(own) or own for own in trained.classes]
