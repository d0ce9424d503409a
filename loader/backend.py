"""What the two backends have in common: encoded bytes and parameters in, uint8 images out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from loader.augment import Params
from loader.reader import Encoded

Pending = Callable[[], torch.Tensor]


class UndecodableError(Exception):
    """An image could not be decoded; `row` is its place in the submitted batch."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


class Backend(Protocol):
    """Decodes and augments batches in the background."""

    def submit(self, encoded: list[Encoded], params: Params, rows: int) -> Pending:
        """Start on a batch of n ≤ `rows` encoded images and return at once.

        The returned function waits and gives uint8 [rows, size, size, 3] on the backend's device, rows
        after the n-th black. Results must be taken in the order of submission. It raises
        `UndecodableError` for an image that does not decode.
        """
        ...

    def close(self) -> None:
        """Stop the background work and free its threads and memory."""
        ...
