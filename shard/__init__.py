"""Pack images into verified, deterministic WebDataset shards, and open them again."""

from shard.dataset import Dataset, Split
from shard.errors import FeedlineError

__all__ = ["Dataset", "FeedlineError", "Split"]
