"""Nearest neighbours by the cosine of features: classification by their votes, and search.

Source of the classifier: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", 2018,
section 3.4, with the settings of Caron et al., "Emerging properties in self-supervised vision transformers" (DINO),
2021: 20 neighbours, each votes with exp(cosine / 0.07).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from shard.errors import FeedlineError
from train.features import Features

TEMPERATURE = 0.07
NEIGHBOURS = 20


@dataclass(frozen=True, slots=True)
class Bank:
    """Features of a split, at hand to be compared with.

    Attributes:
        ids: int64 [N], on the CPU.
        labels: int64 [N], on the device of `values`.
        values: float32 [N, D], of length 1 each.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, batches: Iterable[Features]) -> Bank:
        """Gather all features."""
        parts = list(batches)
        values = torch.cat([unit(part.values) for part in parts])
        return cls(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.labels for part in parts]).to(values.device),
            values,
        )


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What kNN finds.

    Attributes:
        top1: percent of the samples whose class has most votes.
        top5: percent whose class is among the five with most votes.
        samples: how many.
    """

    top1: float
    top5: float
    samples: int


def unit(values: torch.Tensor) -> torch.Tensor:
    """The vectors [B, D] at length 1."""
    return F.normalize(values.float(), dim=1)


def nearest(
    queries: torch.Tensor, bank: Bank, k: int, *, leave_out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest of a bank: cosines [Q, k], falling, and rows of the bank [Q, k].

    Args:
        queries: float [Q, D].
        bank: what is searched.
        k: how many.
        leave_out: int64 [Q], for each query a row of the bank that does not count, such as its own.

    Raises:
        FeedlineError: the bank holds fewer.
    """
    there = len(bank.values) - (leave_out is not None)
    if k > there:
        raise FeedlineError(f"{k} neighbours are asked for, of {there} samples; ask for fewer")
    cosines = unit(queries) @ bank.values.T
    if leave_out is not None:
        cosines[torch.arange(len(cosines), device=cosines.device), leave_out.to(cosines.device)] = -torch.inf
    found = cosines.topk(k, dim=1)
    return found.values, found.indices


def votes(cosines: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Sum of the neighbours' votes by class, [Q, classes].

    Args:
        cosines: of the neighbours, [Q, k].
        labels: of the neighbours, int64 [Q, k].
        classes: how many there are.
    """
    total = torch.zeros(len(cosines), classes, device=cosines.device)
    # Less 1, which changes all votes alike: the largest is 1, and none overflows.
    return total.scatter_add_(1, labels, ((cosines - 1) / TEMPERATURE).exp())


class KnnAccuracy:
    """Accuracy of samples by their neighbours in a bank.

    Args:
        bank: of another split, or of the same.
        classes: how many there are.
        k: neighbours that vote.
        same_split: whether the samples are the bank's own, in order: none votes for itself.
    """

    def __init__(self, bank: Bank, classes: int, *, k: int = NEIGHBOURS, same_split: bool = False) -> None:
        self._bank, self._classes, self._k, self._same = bank, classes, k, same_split
        self._top1 = self._top5 = self._samples = 0

    def add(self, part: Features) -> None:
        """Classify a batch."""
        first, device = self._samples, self._bank.values.device
        own = torch.arange(first, first + len(part.labels)) if self._same else None
        cosines, rows = nearest(part.values, self._bank, self._k, leave_out=own)
        total = votes(cosines, self._bank.labels[rows], self._classes)
        best = total.topk(min(5, self._classes), dim=1)
        # A class without a vote is no guess.
        right = (best.indices == part.labels.to(device)[:, None]) & (best.values > 0)
        self._top1 += int(right[:, 0].sum())
        self._top5 += int(right.any(dim=1).sum())
        self._samples += len(part.labels)

    def result(self) -> Accuracy:
        """Accuracy of all samples so far; at least one."""
        n = self._samples
        return Accuracy(100 * self._top1 / n, 100 * self._top5 / n, n)
