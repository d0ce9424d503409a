"""What a loader hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from loader.feed import Fed


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of one rank. Its tensors stay valid for as long as something refers to them.

    Rows that are not valid pad a last batch, or stand for samples that could not be decoded.

    Attributes:
        images: uint8 [B, H, W, 3] on the loader's device; black where not valid.
        labels: int64 [B] on the loader's device; of a multi-label dataset float32 [B, classes], 1 for each class of the
            sample; 0 where not valid.
        ids: int64 [B] on the CPU, row numbers of the split's index; -1 where not valid.
        valid: bool [B] on the loader's device.
        num_valid: how many rows are valid, known without asking the device.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    valid: torch.Tensor
    num_valid: int


def finish(fed: Fed, labels: npt.NDArray[Any], rows: int, device: torch.device) -> Batch:
    """Make a batch of `rows` rows out of decoded images and the labels [n, …] of its samples."""
    images, bad, n = fed.images, list(fed.bad), len(fed.ids)
    pinned = device.type == "cuda"
    own = torch.from_numpy(labels)
    all_labels = torch.zeros(rows, *own.shape[1:], dtype=own.dtype, pin_memory=pinned)
    valid = torch.zeros(rows, dtype=torch.bool, pin_memory=pinned)
    ids = torch.full((rows,), -1, dtype=torch.int64)
    all_labels[:n] = own
    valid[:n] = True
    ids[:n] = torch.from_numpy(fed.ids)
    if bad:  # on a GPU even no rows would be sent over, and waited for
        for column, value in ((all_labels, 0), (valid, False), (ids, -1), (images, 0)):
            column[bad] = value
    return Batch(
        images,
        all_labels.to(device, non_blocking=True),
        ids,
        valid.to(device, non_blocking=True),
        n - len(bad),
    )
