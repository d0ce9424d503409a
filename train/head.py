"""The classifier: timm's own layer, or a small multi-layer perceptron in its place."""

from __future__ import annotations

from torch import nn

from shard.errors import FeedlineError


def classifiers(model: nn.Module) -> dict[str, nn.Module]:
    """What timm calls the classifier of a model, by name: one module, two of a distilled model, none if unknown."""
    found = getattr(model, "get_classifier", lambda: None)()
    wanted = found if isinstance(found, (tuple, list)) else [found]
    ids = {id(module) for module in wanted if isinstance(module, nn.Module)}
    return {name: module for name, module in model.named_modules() if name and id(module) in ids}


def in_head(name: str, model: nn.Module) -> bool:
    """Whether a tensor of that name belongs to the model's classifier, be it of this shape or another."""
    return any(name.startswith(f"{classifier}.") for classifier in classifiers(model))


def head_parameters(model: nn.Module) -> set[str]:
    """Names of the classifier's parameters; none where timm does not know it."""
    return {name for name, _ in model.named_parameters() if in_head(name, model)}


def put_mlp(model: nn.Module, arch: str, hidden: int, drop: float) -> None:
    """Replace the classifier of a timm model by linear → GELU → dropout → linear; its outputs stay as many.

    Args:
        model: with a classifier that is one linear layer, or a convolution of 1 × 1.
        arch: its name, for the error.
        hidden: width between the layers.
        drop: dropout there.

    Raises:
        FeedlineError: the model has another classifier.
    """
    found = classifiers(model)
    for name, old in found.items():
        model.set_submodule(name, _mlp(old, arch, hidden, drop))
    if not found:
        raise FeedlineError(
            f"head is 'mlp', but timm knows no classifier of {arch!r} that it could replace; use --head linear"
        )


def _mlp(old: nn.Module, arch: str, hidden: int, drop: float) -> nn.Sequential:
    layers: tuple[nn.Module, nn.Module]
    if isinstance(old, nn.Linear):
        layers = nn.Linear(old.in_features, hidden), nn.Linear(hidden, old.out_features)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1):
        layers = nn.Conv2d(old.in_channels, hidden, 1), nn.Conv2d(hidden, old.out_channels, 1)
    else:
        raise FeedlineError(
            f"head is 'mlp', but the classifier of {arch!r} is a {type(old).__name__} and no linear layer; use "
            "--head linear"
        )
    return nn.Sequential(layers[0], nn.GELU(), nn.Dropout(drop), layers[1])
