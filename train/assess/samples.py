"""Results per sample: what all figures are made of, whatever the number of ranks that computed them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from loader import Loader
from shard.errors import FeedlineError
from train.distributed import World
from train.inference import TOP, top_classes

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a network said to N samples, in the order of their ids.

    Attributes:
        ids: int64 [N], row numbers in the split's index; strictly rising.
        labels: int64 [N], as the network numbers its classes.
        top: int64 [N, k], the k ≤ 5 likeliest classes, the likeliest first.
        probabilities: float32 [N, k], theirs.
        losses: float32 [N], cross-entropy with the label.
    """

    ids: Ints
    labels: Ints
    top: Ints
    probabilities: Floats
    losses: Floats

    def __len__(self) -> int:
        """Return N."""
        return len(self.ids)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the likeliest class is the label: bool [N]."""
        return np.asarray(self.top[:, 0] == self.labels)

    @property
    def right5(self) -> npt.NDArray[np.bool_]:
        """Whether the label is among the k likeliest: bool [N]."""
        return np.asarray((self.top == self.labels[:, None]).any(axis=1))


def collect(
    logits: Callable[[torch.Tensor], torch.Tensor],
    loader: Loader,
    world: World,
    *,
    labels: Ints | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Samples:
    """Run a network over a split; every sample comes exactly once, at any world size.

    Nothing is added up on the way: ranks exchange results per sample, which are put in order of the ids. Figures then
    do not depend on who computed what.

    Args:
        logits: the network, uint8 [B, H, W, 3] to float32 [B, classes].
        loader: this rank's share of the split; it is rewound first.
        world: the ranks that share the split. Collective.
        labels: [classes of the dataset], the network's number of each; None: the same.
        progress: told the samples of all ranks that are done, after every batch.

    Returns:
        The same on every rank; without the samples that do not decode, which the loader reports.

    Raises:
        FeedlineError: nothing was decoded, or the network's output is not finite.
    """
    parts: list[tuple[torch.Tensor, ...]] = []
    ids: list[torch.Tensor] = []
    numbers = None if labels is None else torch.from_numpy(labels).to(world.device)
    loader.rewind()
    for step, batch in enumerate(loader, start=1):
        given = batch.labels if numbers is None else numbers[batch.labels]
        output = logits(batch.images)
        probabilities, top = top_classes(output, TOP)
        # They stay on the device: asking for them would make it wait in every step.
        parts.append((given, top, probabilities, F.cross_entropy(output, given, reduction="none")))
        ids.append(batch.ids)
        progress(min(step * loader.batch_size * world.size, loader.num_samples))
    in_order, columns = gathered(ids, parts, world)
    samples = Samples(
        ids=in_order, labels=columns[0], top=columns[1], probabilities=columns[2], losses=columns[3]
    )
    require_finite(samples.ids, samples.losses, samples.probabilities, loader)
    return samples


def gathered(
    ids: list[torch.Tensor], parts: list[tuple[torch.Tensor, ...]], world: World
) -> tuple[Ints, list[npt.NDArray[Any]]]:
    """Every rank's results per sample, padding left out, in the order of their ids.

    Args:
        ids: int64 [B] of each batch of this rank, on the CPU; negative where there is no sample.
        parts: results of each batch, every tensor [B, …].
        world: the ranks. Collective.

    Returns:
        the ids, int64 [N], and an array [N, …] for each tensor of a part.
    """
    mine = torch.cat(ids).numpy()
    kept = mine >= 0
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    ranks = world.gather([column[kept] for column in (mine, *columns)])
    every, *found = (np.concatenate(column) for column in zip(*ranks, strict=True))
    order = np.argsort(every, kind="stable")
    if len(np.unique(every)) != len(every):
        raise AssertionError("a sample was evaluated twice")
    return every[order], [column[order] for column in found]


def require_finite(ids: Ints, losses: Floats, outputs: Floats, loader: Loader) -> None:
    """Refuse results that are none.

    Raises:
        FeedlineError: there are no samples, or the network's output is not finite.
    """
    if not len(ids):
        raise FeedlineError(
            f"no sample of split {loader.split.name!r} could be decoded; see the warnings above"
        )
    broken = ~(np.isfinite(losses) & np.isfinite(outputs).all(axis=1))
    if broken.any():
        first = loader.split.key(int(ids[broken][0]))
        raise FeedlineError(
            f"the network's output is not finite for {broken.sum()} of {len(ids)} samples, the first with the key "
            f"{first}; try --precision fp32, or an earlier --checkpoint"
        )
