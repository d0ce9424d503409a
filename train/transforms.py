"""What `python -m loader show --recipe` asks for, by the entry point in pyproject.toml."""

from __future__ import annotations

from loader import Transform
from train.recipes import recipe


def recipe_transform(name: str) -> Transform:
    """Augmentation of a recipe's training images.

    Raises:
        FeedlineError: there is no such recipe; names the nearest.
    """
    return recipe(name).input.train_transform()
