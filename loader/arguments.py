"""Checks of what a `Loader` is given."""

from __future__ import annotations

from typing import Any

from loader.order import Order
from shard.errors import FeedlineError

MOST_THREADS = 1024  # of a rank; more is surely a slip, and systems may refuse to start them
_COUNTS = ("batch_size", "world_size", "local_world_size", "prefetch")


def as_order(shuffle: bool | str | Order) -> Order:
    """Give the `Order` that `Loader(shuffle=…)` means."""
    if isinstance(shuffle, Order):
        return shuffle
    if isinstance(shuffle, bool):
        return Order(shuffle="global" if shuffle else "none")
    return Order(shuffle=shuffle)


def check_arguments(arguments: dict[str, Any]) -> None:
    """Reject what no loader can be made of.

    Raises:
        FeedlineError: names the argument, its value and what it may be.
    """
    _check_transform(arguments["transform"])
    for name in (*_COUNTS, "threads", "rank", "seed", "max_bad"):
        if (value := arguments[name]) is not None and not hasattr(value, "__index__"):
            raise FeedlineError(f"{name} is {value!r}; it must be a whole number")
    for name in _COUNTS:
        if (value := arguments[name]) is not None and value < 1:
            raise FeedlineError(f"{name} is {value}; it must be at least 1")
    check_threads(arguments["threads"], "threads")
    if (max_bad := arguments["max_bad"]) < 0:
        raise FeedlineError(f"max_bad is {max_bad}; it must not be negative")
    if (timeout_s := arguments["timeout_s"]) <= 0:
        raise FeedlineError(f"timeout_s is {timeout_s}; it must be positive")
    check_load(arguments["hw_decoder_load"])
    rank, world_size = arguments["rank"], arguments["world_size"]
    if not 0 <= rank < world_size:
        raise FeedlineError(
            f"rank is {rank}; with world_size {world_size} it must lie in 0 … {world_size - 1}"
        )


def _check_transform(transform: Any) -> None:
    # torchvision's and timm's are what people bring along, whose text has several lines
    if isinstance(transform, type) or not hasattr(transform, "params"):
        given = " ".join(repr(transform).split())[:100]
        raise FeedlineError(
            f"transform is {given}; give `loader.RandomResizedCrop(size=224)`, `ResizeCenterCrop`, `PadCrop`, a "
            "`loader.Compose` of one with policies, or an object with the methods of `loader.Transform`"
        )


def check_load(load: float | None) -> None:
    """Reject a share of the JPEGs for a GPU's decoding engine that is none."""
    if load is not None and not 0 <= load <= 1:
        raise FeedlineError(f"hw_decoder_load is {load}; it must lie in 0 … 1")


def check_threads(threads: int | None, name: str) -> None:
    """Reject a number of threads that cannot be meant; `name` is its argument or key."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise FeedlineError(
            f"{name} is {threads}; it must lie in 1 … {MOST_THREADS}, or be left out for this rank's share of the cores"
        )
