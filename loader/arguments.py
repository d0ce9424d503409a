"""Checks of what a `Loader` is given."""

from __future__ import annotations

from typing import Any

from loader.order import Order
from shard.errors import FeedlineError

MOST_THREADS = 1024  # of a rank; more is surely a slip, and systems may refuse to start them


def as_order(shuffle: bool | str | Order) -> Order:
    if isinstance(shuffle, Order):
        return shuffle
    if isinstance(shuffle, bool):
        return Order(shuffle="global" if shuffle else "none")
    return Order(shuffle=shuffle)


def check_numbers(arguments: dict[str, Any]) -> None:
    for name in ("batch_size", "world_size", "local_world_size", "prefetch"):
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
