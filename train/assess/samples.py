"""Results per sample: what all figures are made of, whatever the number of ranks that computed them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    mine = _whole(ids, parts)
    samples = _in_order(world.gather(mine))
    require_finite(samples.ids, samples.losses, samples.probabilities, loader)
    return samples


def _whole(ids: list[torch.Tensor], parts: list[tuple[torch.Tensor, ...]]) -> Samples:
    """Results of one rank, padding left out."""
    every = torch.cat(ids).numpy()
    kept = every >= 0
    given, top, probabilities, losses = (
        torch.cat(column).cpu().numpy()[kept] for column in zip(*parts, strict=True)
    )
    return Samples(ids=every[kept], labels=given, top=top, probabilities=probabilities, losses=losses)


def _in_order(ranks: list[Samples]) -> Samples:
    ids = np.concatenate([one.ids for one in ranks])
    order = np.argsort(ids, kind="stable")
    if len(np.unique(ids)) != len(ids):
        raise AssertionError("a sample was evaluated twice")
    return Samples(
        ids=ids[order],
        labels=np.concatenate([one.labels for one in ranks])[order],
        top=np.concatenate([one.top for one in ranks])[order],
        probabilities=np.concatenate([one.probabilities for one in ranks])[order],
        losses=np.concatenate([one.losses for one in ranks])[order],
    )


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
