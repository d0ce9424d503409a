"""Losses of the last steps, kept on the device, and the search for one that is not finite."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from shard.errors import FeedlineError
from train.distributed import World


class NonFiniteError(FeedlineError):
    """The loss or the weights are no longer finite. Raised on every rank at once.

    Attributes:
        details: step, lr, the sample ids of the ranks where it happened, and the loader's position before the step.
    """

    def __init__(self, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step on one rank.

    Attributes:
        step: its number, from 1.
        lr: learning rate.
        ids: sample ids of its micro-batches.
        epoch: the loader's epoch, from 0.
        consumed: samples of the epoch that came before the step.
        share: valid rows among all its rows; where samples weigh differently, the mean weight of its rows.
    """

    step: int
    lr: float
    ids: list[torch.Tensor]
    epoch: int = 0
    consumed: int = 0
    share: float | torch.Tensor = 1.0


class LossWindow:
    """Losses of the steps since the last look, kept on the device.

    Args:
        size: most steps between two looks.
        world: ranks whose losses are averaged.
    """

    def __init__(self, size: int, world: World) -> None:
        self._buffer = torch.zeros(
            2, size, device=world.device
        )  # losses, and the share of rows that they are of
        self._world = world
        self._count = 0
        self._records: deque[StepRecord] = deque(maxlen=size)

    def add(self, loss: torch.Tensor, record: StepRecord) -> None:
        """Note a step's loss; does not wait for the device.

        Args:
            loss: a scalar on the device: the sum over this rank's valid rows, weighted if they weigh differently,
                divided by the number of all its rows.
            record: of the step.
        """
        self._buffer[0, self._count] = loss
        self._buffer[1, self._count] = record.share
        self._records.append(record)
        self._count += 1

    def look(self) -> list[float]:
        """Mean over the valid rows of all ranks, of each step since the last look; waits for the device. Collective.

        Raises:
            NonFiniteError: a loss is not finite.
        """
        local = self._buffer[:, : self._count]
        count, self._count = self._count, 0
        sums, shares = self._world.sum_(local.clone())
        losses: list[float] = (sums / shares.clamp(min=1e-6)).tolist()  # 0 of a step without any valid row
        records = list(self._records)[-count:] if count else []
        for i, record in enumerate(records):
            if not abs(losses[i]) < float("inf"):
                raise self._failure("the loss", record, guilty=not bool(local[0, i].isfinite()))
        return losses

    def check_weights(self, model: torch.nn.Module) -> None:
        """Make sure that no weight is infinite or NaN: the last update may have done it unseen. Collective.

        Raises:
            NonFiniteError: names the last step.
        """
        norms = torch._foreach_norm(list(model.parameters()))
        if not torch.stack([n.float() for n in norms]).isfinite().all() and self._records:
            raise self._failure("a weight", self._records[-1], guilty=True)

    def _failure(self, what: str, record: StepRecord, *, guilty: bool) -> NonFiniteError:
        mine = torch.cat(record.ids).tolist() if guilty else []
        ids = [i for rank_ids in self._world.gather(mine) for i in rank_ids]
        return NonFiniteError(
            f"{what} is not finite at step {record.step} (lr {record.lr:.6g}), with the samples "
            f"{', '.join(map(str, ids[:8]))}{', …' if len(ids) > 8 else ''}; lower --lr, lengthen "
            "--warmup-epochs or raise --precision; `python -m train.replay RUN` writes their images",
            {
                "what": what,
                "step": record.step,
                "lr": record.lr,
                "sample_ids": ids,
                "epoch": record.epoch,
                "samples_consumed": record.consumed,
            },
        )
