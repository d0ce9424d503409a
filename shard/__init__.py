"""Pack images into verified, deterministic WebDataset shards, and open them again."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shard.dataset import Dataset, Split
    from shard.errors import FeedlineError

__all__ = ["Dataset", "FeedlineError", "Split"]
_MODULES = {"Dataset": "shard.dataset", "FeedlineError": "shard.errors", "Split": "shard.dataset"}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: `python -m shard` comes by here before it can catch Ctrl-C."""
    if name not in _MODULES:
        raise AttributeError(f"module 'shard' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
