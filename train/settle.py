"""The configuration with what pretrained weights bring with them: the images that they were trained on."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from train.config import Config, from_dict
from train.model import statistics
from train.pretrained import own_input

_OF_THE_MODEL = ("size", "eval_size", "eval_resize", "interpolation")


def settled(config: Config, content: dict[str, Any] | None, given: Collection[str]) -> Config:
    """The configuration without what is left to the pretrained weights: a run must go on without them.

    Args:
        config: of the run.
        content: checkpoint that it goes on from, if any.
        given: keys that the command line or a configuration file gives; these stay as they are.
    """
    model, found = config.model, _input_of_model(config, content)
    if content is not None:
        saved = from_dict(Config, content["config"], "the checkpoint").model
        mean, std = model.mean or saved.mean, model.std or saved.std
    else:
        mean, std = statistics(model)
    own = {key: value for key, value in found.items() if key not in given}
    if found and "eval_size" in given and "eval_resize" in own:  # in proportion
        own["eval_resize"] = math.floor(config.input.eval_size * found["eval_resize"] / found["eval_size"])
    return replace(config, model=replace(model, mean=mean, std=std), input=replace(config.input, **own))


def _input_of_model(config: Config, content: dict[str, Any] | None) -> dict[str, Any]:
    if not config.input.model_input or config.model.pretrained is None:
        return {}
    source: Any
    if content is not None:
        source = from_dict(Config, content["config"], "the checkpoint").input
    else:
        source = own_input(config.model.arch, config.model.pretrained)
    return {key: getattr(source, key) for key in _OF_THE_MODEL}


def start_line(config: Config) -> str:
    """What a user should know of a run that begins; "" if nothing."""
    if config.model.pretrained is not None:
        return input_line(config)
    if config.model.head_init == "probe":  # of a recipe: as a flag it is a mistake
        return (
            "warning: no --pretrained, so all weights start at random; the recipe is for pretrained ones "
            "(--pretrained timm, a run folder or a file of weights)"
        )
    return ""


def input_line(config: Config) -> str:
    """What images a run on pretrained weights sees, and where that differs from what the weights were trained on.

    Args:
        config: of the run, settled, with pretrained weights.
    """
    images, model = config.input, config.model
    assert model.pretrained is not None
    own = own_input(model.arch, model.pretrained)
    mine = {key: getattr(images, key) for key in _OF_THE_MODEL} | {"mean": model.mean, "std": model.std}
    other = [f"{key} {_text(getattr(own, key))}" for key, value in mine.items() if value != getattr(own, key)]
    return (
        f"images: {images.size} px; in evaluation {images.eval_size} px out of {images.eval_resize}; "
        f"{images.interpolation}; mean {_text(model.mean)}, std {_text(model.std)}; "
        + (f"but {own.source} has {', '.join(other)}" if other else f"as {own.source} has it")
    )


def _text(value: Any) -> str:
    return " ".join(f"{part:.4g}" for part in value) if isinstance(value, tuple) else str(value)
