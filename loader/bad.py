"""Samples that cannot be read or decoded: named, counted, and too many of them an error."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from loader.order import Ids
from shard.dataset import Split
from shard.errors import FeedlineError

_log = logging.getLogger("feedline.loader")
_SHOWN = 10  # of a final list, in the message


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that was masked.

    Attributes:
        id: its number in the split.
        shard: path or URL of its shard.
        key: its WebDataset key.
        offset: where the image begins in the shard, bytes.
        reason: what is wrong with it.
    """

    id: int
    shard: str
    key: str
    offset: int
    reason: str

    def __str__(self) -> str:
        """Say where it is and what is wrong, in one line."""
        return f"sample {self.id} (key {self.key}, offset {self.offset} in {self.shard}): {self.reason}"


class BadSamples:
    """The bad samples that one rank has met, each once however often it comes.

    Args:
        split: whose samples.
        most: how many are allowed.
        remedy: what to do about them.
    """

    def __init__(self, split: Split, most: int, remedy: str) -> None:
        self._split, self._most, self._remedy = split, most, remedy
        self._found: dict[int, BadSample] = {}

    @property
    def all(self) -> list[BadSample]:
        """Those met, in the order of their appearance."""
        return list(self._found.values())

    def rows(self, ids: Ids) -> dict[int, str]:
        """Reasons by row, of those among the samples `ids` [B]."""
        if not self._found:
            return {}
        return {row: self._found[i].reason for row, i in enumerate(ids.tolist()) if i in self._found}

    def add(self, sample: int, reason: str) -> None:
        """Note a sample, and log it if it is new.

        Raises:
            FeedlineError: one too many; names them.
        """
        if sample in self._found:
            return
        split = self._split
        shard = split.shard_url(int(split.shard[sample]))
        bad = BadSample(sample, shard, split.key(sample), int(split.offset[sample]), reason)
        self._found[sample] = bad
        if len(self._found) > self._most:
            rest = len(self._found) - _SHOWN
            names = "; ".join(str(one) for one in self.all[:_SHOWN])
            raise FeedlineError(
                f"{len(self._found)} samples of split {split.name!r} cannot be read or decoded, max_bad allows "
                f"{self._most}: {names}{f'; and {rest} more' if rest > 0 else ''}; {self._remedy}"
            )
        _log.warning("masked a bad sample: %s", bad)
