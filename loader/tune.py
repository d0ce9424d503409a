"""Settings that are found out while running."""

from __future__ import annotations

import logging

_log = logging.getLogger("feedline.loader")
_FIRST, _MOST = 2, 8
_STEPS = 64  # of observing
_WAIT_SHARE = 0.05  # of a step


class PrefetchDepth:
    """How many batches are kept in work.

    Deeper queues help against unevenness, not against a loader that is too slow throughout. So the depth grows where
    a step waited although the one before it did not, and stays afterwards.

    Args:
        fixed: a depth to keep; None: find it.
    """

    def __init__(self, fixed: int | None) -> None:
        self.depth = _FIRST if fixed is None else fixed
        self._steps = 0
        self._done = fixed is not None
        self._waited_before = True  # the first batch always waits

    def observe(self, wait_s: float, step_s: float) -> None:
        """Take note of a step of `step_s` seconds that waited `wait_s` of them."""
        if self._done:
            return
        waited = wait_s > _WAIT_SHARE * step_s
        if waited and not self._waited_before and self.depth < _MOST:
            self.depth += 1
        self._waited_before = waited
        self._steps += 1
        if self._steps >= _STEPS:
            self._done = True
            _log.info("prefetch: chose %d batches", self.depth)
