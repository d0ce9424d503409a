"""One rank's way through the epochs: which samples in which step, and what happens to them. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from loader.feed import Request
from loader.order import Ids, Order, num_steps
from loader.params import Transform
from loader.where import Steps
from shard.dataset import Split
from shard.labels import require_single


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """See `Loader` for the attributes."""

    split: Split
    order: Order
    transform: Transform
    seed: int
    batch_size: int
    rank: int
    world_size: int
    drop_last: bool
    size_at: Callable[[int, int], int] | None

    def __post_init__(self) -> None:
        """Reject an order that needs one class a sample, where there are several."""
        several = self.split.lists is not None
        require_single(several and self.order.balance > 0, f"balance {self.order.balance}", "leave it out")

    @property
    def global_batch(self) -> int:
        """Samples of one step on all ranks."""
        return self.batch_size * self.world_size

    def steps(self, consumed: int) -> int:
        """Steps left in an epoch after `consumed` samples."""
        return num_steps(len(self.split), consumed, self.global_batch, drop_last=self.drop_last)

    def draws(self, epoch: int) -> Ids:
        """See `Order.draws`: int64 [N]."""
        label = self.split.label if self.order.balance else None
        return self.order.draws(self.split.shard, self.seed, epoch, label)

    def plan(self, epoch: int, draws: Ids, consumed: int) -> Steps:
        """Sample ids of every step of this rank: those left of `epoch`, whose draws are known, or of a later one."""

        def plan(ahead: int) -> Iterator[Ids]:
            order, start = (self.draws(epoch + ahead), 0) if ahead else (draws, consumed)
            for step in range(self.steps(start)):
                yield order[self._positions(start, step)] % len(self.split)

        return plan

    def request(self, epoch: int, draws: Ids, consumed: int, step: int) -> Request:
        """Samples of step `step` after `consumed`, and their parameters."""
        keys = draws[self._positions(consumed, step)]
        ids = keys % len(self.split)
        transform = self.transform
        if self.size_at is not None:
            transform = transform.at_size(self.size_at(epoch, consumed + step * self.global_batch))
        width, height = self.split.width[ids], self.split.height[ids]
        return Request(ids, transform.params(self.seed, epoch, keys, width, height))

    def _positions(self, consumed: int, step: int) -> Ids:
        return self.order.rank_positions(
            len(self.split), consumed, step, self.batch_size, self.rank, self.world_size
        )
