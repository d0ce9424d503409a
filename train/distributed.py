"""Processes: who am I, on which device, and the few things that ranks tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from loader.resolve import usable_cores
from shard.errors import FeedlineError

# A rank that waits this long has lost its peers. The default of up to 30 minutes only hides that.
TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class World:
    """One process among all. Every method is collective: all ranks must call it.

    Attributes:
        rank: number of this process among all.
        size: number of processes.
        device: where this process computes.
        control: group for small messages between hosts' memories, apart from the gradients' traffic.
        local_size: number of processes on this machine, which share its cores.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: dist.ProcessGroup | None = None
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place, on the tensor's device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors with rank 0's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def max(self, value: int) -> int:
        """Return the largest value of any rank; touches no accelerator."""
        if self.size == 1:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self.control)
        return int(box.item())

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in order of rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values


def env_rank() -> int:
    """Rank as torchrun tells it; 0 in a process that it did not start."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def connect(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone; sets this process's device before anything else.

    Args:
        device: "cpu", "cuda", or "auto": cuda where there is one.

    Raises:
        FeedlineError: no such device.
    """
    size, local_size = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    elif "LOCAL_WORLD_SIZE" in os.environ:
        # torchrun gives each process one OpenMP thread; share the cores instead.
        torch.set_num_threads(max(1, usable_cores() // local_size))
    if size == 1:
        yield World(device=chosen)
        return
    if chosen.type == "cuda":
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=chosen)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    assert isinstance(control, dist.ProcessGroup)  # all ranks are members
    yield World(env_rank(), size, chosen, control, local_size)
    # Not in a `finally`: after a failure the peers may be gone, and leaving the group would wait for them.
    dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise FeedlineError(f"device is {name!r}; choose auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 0:
        raise FeedlineError("device is 'cuda', but this machine has no usable CUDA GPU; use --device cpu")
    if local_rank >= count:
        raise FeedlineError(
            f"this is process {local_rank + 1} of a machine with {count} GPU(s); use --nproc-per-node {count}"
        )
    return torch.device("cuda", local_rank)
