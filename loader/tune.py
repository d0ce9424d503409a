"""Settings that are found out while running."""

from __future__ import annotations

import logging
from dataclasses import dataclass

_log = logging.getLogger("feedline.loader")
_FIRST_DEPTH, _MOST_DEPTH = 2, 8
_FIRST_AHEAD, _MOST_AHEAD = 2, 16
_STEPS = 64  # of observing
_WAIT_SHARE = 0.05  # of a step


@dataclass(slots=True)
class Found:
    """What was found out on the device, once for all backends of a loader.

    Attributes:
        hw_decoder_load: share of JPEGs for the GPU's decoding engine, 0 … 1; None: not known yet.
    """

    hw_decoder_load: float | None = None


class Tuner:
    """How many batches are kept in work, and how many more are being read.

    Deeper queues help against unevenness, not against a loader that is too slow throughout. So the depth grows where
    a step waited although the one before it did not. Reading further ahead helps whenever bytes are what is waited
    for: the storage then gets more requests at a time. Both stay as they are after the first steps.

    Args:
        fixed: a depth to keep; None: find it.

    Attributes:
        depth: batches in work.
        read_ahead: batches whose bytes are asked for before their decoding may begin.
    """

    def __init__(self, fixed: int | None) -> None:
        self.depth = _FIRST_DEPTH if fixed is None else fixed
        self.read_ahead = _FIRST_AHEAD
        self._fixed = fixed is not None
        self._steps = 0
        self._waited_before = True  # the first batch always waits

    def observe(self, wait_s: float, read_wait_s: float, step_s: float) -> None:
        """Take note of a step of `step_s` seconds that waited `wait_s` of them, `read_wait_s` for bytes."""
        if self._steps >= _STEPS:
            return
        waited = wait_s > _WAIT_SHARE * step_s
        if waited and self._steps and 2 * read_wait_s > wait_s:
            self.read_ahead = min(2 * self.read_ahead, _MOST_AHEAD)
        elif waited and not self._waited_before and not self._fixed:
            self.depth = min(self.depth + 1, _MOST_DEPTH)
        self._waited_before = waited
        self._steps += 1
        if self._steps == _STEPS:
            _log.info("chose prefetch %d batches, read-ahead %d batches more", self.depth, self.read_ahead)
