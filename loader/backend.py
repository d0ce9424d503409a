"""What the two backends have in common: encoded bytes and parameters in, uint8 images out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from loader.params import Params
from loader.reader import Encoded


@dataclass(slots=True)
class Decoded:
    """A decoded batch.

    Attributes:
        images: uint8 [rows, size, size, 3] on the backend's device; black where nothing was decoded.
        bad: reason by row, of images that do not decode.
    """

    images: torch.Tensor
    bad: dict[int, str] = field(default_factory=dict)


Pending = Callable[[], Decoded]


class Backend(Protocol):
    """Decodes and augments batches in the background."""

    def submit(self, encoded: list[Encoded], params: Params, rows: int) -> Pending:
        """Start on a batch of n ≤ `rows` encoded images and return at once.

        The returned function waits for it. Results must be taken in the order of submission.

        Raises:
            FeedlineError: from the returned function, when nothing comes out for the time that was allowed.
        """
        ...

    def close(self) -> None:
        """Stop the background work and free its threads and memory."""
        ...
