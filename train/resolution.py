"""Progressive resizing: the side of training images as a function of the position in the training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shard.errors import FeedlineError
from train.schedule import Length, parse_duration


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolutionConfig:
    """Progressive resizing: small images first, quicker to train on.

    Source: Howard, DAWNBench 2018; the ramp is that of FFCV's ImageNet script. A larger `eval_size` makes the
    test-resolution bump of Touvron et al., "Fixing the train-test resolution discrepancy", 2019.
    """

    start_size: int | None = None
    """Side of training images at the beginning, pixels; it grows to size. None: size all along."""
    ramp_from: str = "0ep"
    """Until when it stays start_size."""
    ramp_to: str = "100%"
    """From when it is size."""
    size_multiple: int = 32
    """Between the two it is a multiple of this; each of them is compiled once."""
    ramp_by: Literal["epoch", "step"] = "epoch"
    """Whether it changes between epochs only, or at any step."""

    def __post_init__(self) -> None:
        """Reject what is no duration or size."""
        for name in ("ramp_from", "ramp_to"):
            parse_duration(getattr(self, name), name)
        for name in ("start_size", "size_multiple"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise FeedlineError(f"{name} is {value}; it must be at least 1")


def size_at(config: ResolutionConfig, size: int, length: Length) -> Callable[[int, int], int] | None:
    """Side of training images as a function of (epoch, samples consumed of it); None: always `size`.

    Raises:
        FeedlineError: the ramp runs backwards, or start_size is above size.
    """
    start = config.start_size
    if start is None:
        return None
    low, high = length.of(config.ramp_from, "ramp_from"), length.of(config.ramp_to, "ramp_to")
    if low > high:
        raise FeedlineError(f"ramp_from is {config.ramp_from!r}, after ramp_to {config.ramp_to!r}")
    if start > size:
        raise FeedlineError(f"start_size is {start}, above size {size}; images can only grow")
    least = start

    def at(epoch: int, consumed: int) -> int:
        within = consumed // length.batch_size if config.ramp_by == "step" else 0
        step = epoch * length.steps_per_epoch + within
        if step <= low:
            return least
        if step >= high:
            return size
        between = float(np.interp(step, [low, high], [least, size]))
        # Half to even, as np.round in FFCV; never outside the two ends, which need be no multiples.
        multiple = int(np.round(between / config.size_multiple)) * config.size_multiple
        return min(max(multiple, least), size)

    return at


def sizes(at: Callable[[int, int], int] | None, size: int, length: Length) -> list[int]:
    """All sides that the run will see, in order."""
    if at is None:
        return [size]
    steps = range(length.steps)
    seen = (at(s // length.steps_per_epoch, s % length.steps_per_epoch * length.batch_size) for s in steps)
    return sorted(set(seen))
