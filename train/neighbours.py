"""Search by image: the samples of a split whose features are nearest to those of given images, on a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from loader.replay import replay
from loader.show import Pixels, Sheet
from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.labels import label_text
from train.features import Features
from train.knn import unit
from train.trained import Trained


@dataclass(frozen=True, slots=True)
class Found:
    """Neighbours of Q images, the nearest first.

    Attributes:
        cosines: float32 [Q, k].
        ids: int64 [Q, k], row numbers of the split's index.
    """

    cosines: torch.Tensor
    ids: torch.Tensor


class Search:
    """Keeps the k nearest of all samples that pass by.

    Args:
        queries: features [Q, D] of the images that are searched for.
        k: how many neighbours.
    """

    def __init__(self, queries: torch.Tensor, k: int) -> None:
        self._queries, self._k = unit(queries), k
        self._cosines = torch.empty(len(queries), 0, device=queries.device)
        self._ids = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)

    def add(self, part: Features) -> None:
        """Look at a batch."""
        cosines = torch.cat([self._cosines, self._queries @ unit(part.values).T], dim=1)
        ids = torch.cat([self._ids, part.ids.to(self._ids.device).expand(len(self._queries), -1)], dim=1)
        best = cosines.topk(min(self._k, cosines.shape[1]), dim=1)
        self._cosines, self._ids = best.values, ids.gather(1, best.indices)

    def result(self) -> Found:
        """The nearest of all.

        Raises:
            FeedlineError: fewer samples than neighbours asked for.
        """
        if self._ids.shape[1] < self._k:
            raise FeedlineError(
                f"--top is {self._k}, but the split has only {self._ids.shape[1]} samples; lower it"
            )
        return Found(self._cosines.cpu(), self._ids.cpu())


def make_sheet(
    trained: Trained, dataset: Dataset, split: str, images: Pixels, names: list[str], found: Found, title: str
) -> Sheet:
    """A sheet with a row for each image, its neighbours beside it.

    Args:
        trained: the run.
        dataset: where the neighbours are.
        split: of it.
        images: uint8 [Q, size, size, 3] that were searched for.
        names: their captions.
        found: their neighbours.
        title: of the sheet.
    """
    rows = dataset.split(split)
    ids = found.ids.flatten().tolist()
    shown = replay(dataset, split, trained.config.input.eval_transform(), ids)
    neighbours = shown.images[0].reshape(*found.ids.shape, *images.shape[1:])  # [Q, k, size, size, 3]
    tiles = tuple(
        tuple(
            f"{cosine:.2f} {label_text(rows.label_of(i), dataset.classes)}"
            for i, cosine in zip(row, near, strict=True)
        )
        for row, near in zip(found.ids.tolist(), found.cosines.tolist(), strict=True)
    )
    return Sheet(
        plain=images,
        images=np.swapaxes(neighbours, 0, 1),
        columns=tuple(str(rank) for rank in range(1, found.ids.shape[1] + 1)),
        rows=tuple(names),
        title=title,
        about=f"{title}; samples {found.ids.tolist()}",
        bad=shown.bad,
        first="searched for",
        tiles=tiles,
    )
