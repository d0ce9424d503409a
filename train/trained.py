"""A trained network out of its run folder, ready for use: what export, embed and pyramids start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.image import Exif, Policy
from train import checkpoint
from train.config import Config, from_dict
from train.model import Normalized, make_model
from train.run_folder import RunFolder

Weights = Literal["auto", "plain", "averaged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A run's network and what belongs to it.

    Attributes:
        root: the run folder.
        checkpoint: file that the weights are from.
        config: the run's configuration.
        classes: class names by label, those of the dataset that it was trained on.
        images: what is done to images from outside, so that they are what those of the run's dataset are.
        averaged: whether the weights are the average that the run kept.
        epoch: epochs trained when the checkpoint was written.
        top1: percent, in the evaluation at that epoch, of these weights; None before the first.
        map: the same of a run on a multi-label dataset, which has no top1.
        multi_label: whether it is of such a run: a sigmoid then makes probabilities of its logits, no softmax.
        net: the network in evaluation mode, fp32: uint8 images [B, H, W, 3] to logits [B, classes].
    """

    root: Path
    checkpoint: Path
    config: Config
    classes: tuple[str, ...]
    images: Policy
    averaged: bool
    epoch: int
    top1: float | None
    net: Normalized
    map: float | None = None
    multi_label: bool = False

    def dataset(self, data: str | None = None) -> Dataset:
        """Open `data`, or else the dataset of the run.

        Raises:
            FeedlineError: it is not there any more.
        """
        source = data or self.config.data
        if source is None:
            raise FeedlineError(f"{self.checkpoint} names no dataset; give --data DATASET")
        try:
            return Dataset.open(source)
        except FeedlineError as error:
            if data is not None:
                raise
            raise FeedlineError(f"{error}; if it has moved, give --data DATASET") from error

    def split_of(self, dataset: Dataset, name: str | None) -> str:
        """Split `name`, or else the one that the run evaluates on.

        Raises:
            FeedlineError: the dataset has none of that name.
        """
        found = name or self.config.input.eval_split
        if found not in dataset.split_names:
            why = "" if name else ", which the run evaluates on"
            raise FeedlineError(
                f"{dataset.root} has no split {found!r}{why}; it has {', '.join(dataset.split_names)}: give --split"
            )
        return found


def load_trained(
    run: Path,
    which: str = "best",
    *,
    weights: Weights = "auto",
    device: torch.device | None = None,
    model_args: str = "",
) -> Trained:
    """Take a run's network up.

    Args:
        run: the run folder.
        which: "best", "last", or the path of a checkpoint.
        weights: "averaged", "plain" as they were trained, or "auto": the average where the run kept one, since it is
            what decided which checkpoint is the best.
        device: where the network goes; None: the CPU.
        model_args: further arguments of timm's model, such as output_stride=8; names and shapes of weights must not
            change by them.

    Raises:
        FeedlineError: no such run or checkpoint, a damaged one, or one without an average when that is asked for.
    """
    path = find_checkpoint(run, which)
    try:
        content = checkpoint.load(path)
    except checkpoint.DamagedError as error:
        raise checkpoint.DamagedError(
            f"{error}; {_others(run, path) or 'there is no other in the run folder'}"
        ) from error
    config = from_dict(Config, content["config"], str(path))
    averaged = weights != "plain" and "model_ema" in content
    if weights == "averaged" and not averaged:
        raise FeedlineError(f"{path} holds no averaged weights: the run had no --ema-decay; leave them out")
    classes = tuple(content["classes"])
    arguments = ", ".join(filter(None, (config.model.model_args, model_args)))
    # Recomputing activations is for training alone.
    model = replace(config.model, grad_checkpointing=False, model_args=arguments)
    net = make_model(model, len(classes), device or torch.device("cpu"), resumed=True)
    try:
        net.model.load_state_dict(content["model_ema" if averaged else "model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise FeedlineError(f"the weights of {path} do not fit {config.model.arch!r}: {reason}") from error
    last_eval = content["last_eval"]
    return Trained(
        root=run,
        checkpoint=path,
        config=config,
        classes=classes,
        images=_for_outside(content.get("images", {})),
        averaged=averaged,
        epoch=int(content["epoch"]),
        top1=last_eval.get("ema_top1" if averaged else "top1"),
        map=last_eval.get("ema_map" if averaged else "map"),
        multi_label=bool(content.get("multi_label", False)),
        net=net.eval().requires_grad_(False),
    )


def _for_outside(built: dict[str, Any]) -> Policy:
    """What a build made of its images, by its policy, as a policy for images that may be anything.

    A note of the orientation that was kept (`--exif keep`) is not followed by any decoder of the loader.

    Args:
        built: fields of the policy; {}: of a run that did not note it, or of foreign shards.
    """
    policy = Policy(**{**built, "keep": tuple(built.get("keep", ()))})
    exif: Exif = "apply" if policy.exif == "apply" else "strip"
    return replace(policy, check="decode", on_bad="repair", exif=exif)


def find_checkpoint(run: Path, which: str) -> Path:
    """Path of the checkpoint "best", "last", or of that path.

    Raises:
        FeedlineError: there is none; names those that there are.
    """
    folder = RunFolder(run)
    path = {"best": folder.best, "last": folder.last}.get(which, Path(which))
    if path.is_file():
        return path
    if not folder.config.exists():
        raise FeedlineError(
            f"{run} is no run folder ({folder.config} does not exist); give one of `python -m train`"
        )
    raise FeedlineError(
        f"there is no checkpoint {path}; {_others(run, path) or 'the run has not saved any yet'}"
    )


def _others(run: Path, lost: Path) -> str:
    """Which other checkpoints of a run to take than one that is missing or damaged; "" if it has none."""
    folder = RunFolder(run)
    names = {folder.best: "best", folder.last: "last"}
    there = [names.get(path, str(path)) for path in sorted(folder.checkpoints.glob("*.pt")) if path != lost]
    return f"give --checkpoint {' or '.join(there)}" if there else ""
