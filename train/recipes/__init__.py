"""Recipes: named starting points. Each is a function that returns a `Config`; flags override its values."""

from __future__ import annotations

import sys
from collections.abc import Callable

from shard.errors import FeedlineError
from train.config import Config
from train.naming import nearest
from train.recipes import ffcv
from train.recipes.cifar10_cpu import cifar10_cpu
from train.recipes.cifar10_gpu import cifar10_gpu
from train.recipes.convnext_tiny import convnext_tiny
from train.recipes.deit3_small import deit3_small
from train.recipes.digits import digits
from train.recipes.finetune import finetune
from train.recipes.resnet50_imagenet import resnet50_imagenet
from train.recipes.resnet_strikes_back import resnet50_a1, resnet50_a2, resnet50_a3

_PLAIN: list[Callable[[], Config]] = [
    digits,
    cifar10_cpu,
    cifar10_gpu,
    resnet50_imagenet,
    resnet50_a1,
    resnet50_a2,
]
_PLAIN += [resnet50_a3, deit3_small, convnext_tiny, finetune]
RECIPES: dict[str, Callable[[], Config]] = {f.__name__: f for f in _PLAIN} | ffcv.RECIPES


def about(name: str) -> str:
    """Documentation of a recipe: source, command, expected time and accuracy."""
    function = RECIPES[name]
    module = getattr(function, "func", function).__module__  # those of ffcv are partial calls of one function
    return sys.modules[module].__doc__ or ""


def recipe(name: str) -> Config:
    """Return the recipe's configuration; `data` is still to be set.

    Raises:
        FeedlineError: there is no such recipe; names the nearest.
    """
    if name not in RECIPES:
        raise FeedlineError(f"there is no recipe {name!r}; {nearest(name, RECIPES)}")
    return RECIPES[name]()
