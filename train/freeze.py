"""Freezing: parts of the model that do not learn, for the whole training or its beginning."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from torch import nn

from shard.errors import FeedlineError
from train.head import head_parameters
from train.schedule import parse_duration

ALL_BUT_HEAD = "all-but-head"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeConfig:
    """Parts that do not learn."""

    freeze: str = ""
    """all-but-head, or names of parameters' beginnings separated by commas, such as conv1,bn1,layer1."""
    freeze_for: str = "100%"
    """For how long, from the start; a duration such as 2ep."""

    def __post_init__(self) -> None:
        """Reject what is no duration."""
        parse_duration(self.freeze_for, "freeze_for")


def frozen_parameters(model: nn.Module, config: FreezeConfig) -> list[nn.Parameter]:
    """Parameters of a bare timm model that are frozen; those that never learn are not among them.

    Raises:
        FeedlineError: a name that no parameter begins with, or nothing is left to learn.
    """
    if not config.freeze:
        return []
    learnt = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.freeze == ALL_BUT_HEAD:
        head = head_parameters(model)
        if not head:
            raise FeedlineError(f"freeze is {ALL_BUT_HEAD!r}, but the model has no classifier")
        frozen = [p for name, p in learnt if name not in head]
    else:
        prefixes = [p.strip() for p in config.freeze.split(",") if p.strip()]
        for prefix in prefixes:
            if not any(_begins(name, prefix) for name, _ in learnt):
                names = {".".join(n.split(".")[: prefix.count(".") + 1]) for n, _ in learnt} | {ALL_BUT_HEAD}
                near = difflib.get_close_matches(prefix, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"choose of {', '.join(sorted(names))}"
                raise FeedlineError(f"freeze names {prefix!r}, which no parameter begins with; {hint}")
        frozen = [p for name, p in learnt if any(_begins(name, x) for x in prefixes)]
    if len(frozen) == len(learnt):
        raise FeedlineError(f"freeze is {config.freeze!r}, which leaves nothing to learn")
    return frozen


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


def set_train_mode(net: nn.Module) -> None:
    """Put `net` into training mode, but norms that do not learn into evaluation: their statistics stay too."""
    net.train()
    for module in net.modules():
        own = list(module.parameters(recurse=False))
        frozen = bool(own) and not any(p.requires_grad for p in own)
        if hasattr(module, "running_mean") and frozen:
            module.eval()
