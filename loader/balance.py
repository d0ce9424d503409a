"""Balanced sampling: rare classes come more often, and an epoch stays as long as it is.

Class c of n_c samples makes up the share n_c ** (1 - balance) / sum of the same over the classes: balance 0 is what the
data hold, 1 all classes alike, 0.5 square-root sampling (Mahajan et al., "Exploring the limits of weakly supervised
pretraining", 2018; the family: Kang et al., "Decoupling representation and classifier for long-tailed recognition",
2020).

Nothing is drawn with a generator. A class's quota is its share of the epoch, rounded such that it is right on average
over the epochs (systematic sampling: one keyed offset for all classes); within a class every sample comes as often as
every other, give or take one, and who comes once more is another choice in every epoch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loader.keyed import Stream, hash_u64, uniform

Ids = npt.NDArray[np.int64]


def shares(label: Ids, balance: float) -> npt.NDArray[np.float64]:
    """Share of an epoch that each label 0, 1, … gets, float64; 0 where there is no sample."""
    counts = np.bincount(label)
    weights = np.where(counts > 0, np.power(np.maximum(counts, 1), 1.0 - balance), 0.0)
    total: npt.NDArray[np.float64] = weights / weights.sum()
    return total


def balanced(label: Ids, balance: float, seed: int, epoch: int) -> Ids:
    """Draws of an epoch as `loader.order` numbers them, in no particular order: int64 [N].

    Args:
        label: int64 [N], classes of the samples.
        balance: 0 … 1.
        seed: of the order.
        epoch: which.
    """
    n = len(label)
    edges = np.cumsum(shares(label, balance)) * n + uniform(seed, epoch, 0, Stream.QUOTAS)
    edges[-1] = n + uniform(seed, epoch, 0, Stream.QUOTAS)[0]  # whatever the sum was rounded to
    quota = np.diff(np.floor(edges).astype(np.int64), prepend=0)
    counts = np.bincount(label)
    # Samples class after class, within a class by a hash: the first of them come once more.
    keys = hash_u64(seed, epoch, np.arange(n), Stream.CHOICE)
    by_class = np.lexsort((keys, label))
    first = np.cumsum(counts) - counts
    place = np.arange(n) - first[label[by_class]]
    whole, rest = quota // np.maximum(counts, 1), quota % np.maximum(counts, 1)
    times = whole[label[by_class]] + (place < rest[label[by_class]])
    sample = np.repeat(by_class, times)
    repetition = np.arange(n) - np.repeat(np.cumsum(times) - times, times)
    drawn: Ids = sample + repetition * n
    return drawn
