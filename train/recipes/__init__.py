"""Recipes: named starting points. Each is a function that returns a `Config`; flags override its values."""

from __future__ import annotations

from collections.abc import Callable

from shard.errors import FeedlineError
from train.config import Config
from train.naming import nearest
from train.recipes.cifar10_cpu import cifar10_cpu
from train.recipes.digits import digits
from train.recipes.resnet50_imagenet import resnet50_imagenet

RECIPES: dict[str, Callable[[], Config]] = {f.__name__: f for f in (digits, cifar10_cpu, resnet50_imagenet)}


def recipe(name: str) -> Config:
    """Return the recipe's configuration; `data` is still to be set.

    Raises:
        FeedlineError: there is no such recipe; names the nearest.
    """
    if name not in RECIPES:
        raise FeedlineError(f"there is no recipe {name!r}; {nearest(name, RECIPES)}")
    return RECIPES[name]()
