"""Where a loader stands: a position that can be moved, saved and taken up again."""

from __future__ import annotations

from operator import index
from typing import Any

from shard.errors import FeedlineError

_LAST_EPOCH = 2**64 - 1  # the order's keys have 64 bits for it


class Position:
    """Epoch and samples consumed of it; who moves it ends the iteration that is under way.

    Attributes:
        epoch: from 0.
        samples_consumed: of this epoch, by all ranks together.
        num_samples: of an epoch.
    """

    num_samples: int

    def __init__(self) -> None:
        self.epoch = 0
        self.samples_consumed = 0
        self._run = 0  # number of the newest iterator; the position was moved where an iterator's differs

    def _identity(self) -> dict[str, Any]:
        """What this is a position in; JSON-able."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; does nothing if already in it, so that a resumed position is kept.

        Raises:
            FeedlineError: not a whole number from 0 on.
        """
        epoch = _whole("set_epoch is given", epoch, _LAST_EPOCH)
        if epoch != self.epoch:
            self._seek(epoch, 0)

    def rewind(self) -> None:
        """Go back to the start of the current epoch."""
        self._seek(self.epoch, 0)

    def _seek(self, epoch: int, samples_consumed: int) -> None:
        self._run += 1  # an iterator that is still live belongs to the old position
        self.epoch, self.samples_consumed = epoch, samples_consumed

    def state_dict(self) -> dict[str, Any]:
        """Position, and what it is a position in; JSON-able, independent of world and batch size."""
        return {
            "epoch": self.epoch,
            "samples_consumed": self.samples_consumed,
            **self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            FeedlineError: the state belongs to another dataset, split, seed or order, or is none.
        """
        if not isinstance(state, dict):
            raise FeedlineError(f"the saved loader state is {state!r}, not what state_dict() gives")
        for key, mine in self.state_dict().items():
            if key not in ("epoch", "samples_consumed") and state.get(key) != mine:
                raise FeedlineError(
                    f"the saved loader state has {key} {state.get(key)!r}, this loader {mine!r}: "
                    "it can only continue on the same data in the same order"
                )
        where = [
            _whole(f"the saved loader state has {key}", state.get(key), most)
            for key, most in (("epoch", _LAST_EPOCH), ("samples_consumed", self.num_samples))
        ]
        self._seek(*where)

    def _require_newest(self, run: int) -> None:
        if run != self._run:
            raise FeedlineError(
                "this iteration of the Loader is over: it was closed, moved (set_epoch, rewind, "
                "load_state_dict) or iterated anew meanwhile"
            )


def _whole(what: str, value: Any, most: int) -> int:
    try:
        number = index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        raise FeedlineError(f"{what} {value!r}; it must be a whole number in 0 … {most}")
    return number
