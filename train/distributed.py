"""Processes: who am I, on which device, and the few things that ranks tell each other."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from loader.resolve import usable_cores
from shard.errors import FeedlineError
from train.meeting import Joining, meet
from train.peers import Peers


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksConfig:
    """Ranks."""

    join_timeout_s: float = 120.0
    """Time in which all ranks have to meet at the start; they start within seconds of each other."""
    timeout_s: float = 180.0
    """Longest wait of a rank for the others; more than the slowest takes to compile or to read a checkpoint."""
    lost_after_s: float = 20.0
    """Silence of another rank's process after which a rank ends itself and says who is missing."""

    def __post_init__(self) -> None:
        """Reject times that are none."""
        for name in ("join_timeout_s", "timeout_s", "lost_after_s"):
            if not getattr(self, name) > 0:
                raise FeedlineError(f"{name} is {getattr(self, name)}; it must be positive")


@dataclass(frozen=True, slots=True)
class World:
    """One process among all. Every method is collective: all ranks must call it.

    Attributes:
        rank: number of this process among all.
        size: number of processes.
        device: where this process computes.
        control: group for small messages between hosts' memories, apart from the gradients' traffic.
        local_size: number of processes on this machine, which share its cores.
        peers: who else is alive; None for one process alone.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: dist.ProcessGroup | None = None
    local_size: int = 1
    peers: Peers | None = None

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

    def maxima(self, values: list[int]) -> list[int]:
        """Return the largest of every rank's values, entry by entry; touches no accelerator."""
        if self.size == 1:
            return values
        box = torch.tensor(values)
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self.control)
        result: list[int] = box.tolist()
        return result

    def note_step(self, step: int) -> None:
        """Tell the others how far this rank has come, in its next heartbeat."""
        if self.peers is not None:
            self.peers.step = step

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
def connect(device: str, config: RanksConfig | None = None) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone; sets this process's device before anything else.

    Args:
        device: "cpu", "cuda", or "auto": cuda where there is one.
        config: how long to wait for the others.

    Raises:
        FeedlineError: no such device.
    """
    config = config or RanksConfig()
    end_with_parent()
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
    timeout, rank = timedelta(seconds=config.timeout_s), env_rank()
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    with Joining(PrefixStore("joining", store.clone()), rank, size, config.join_timeout_s):
        attempt = PrefixStore(meet(PrefixStore("meeting", store), rank, size), store)
        beats = PrefixStore("peers", attempt.clone())
        if chosen.type == "cuda":
            dist.init_process_group(
                "nccl", store=attempt, rank=rank, world_size=size, timeout=timeout, device_id=chosen
            )
        else:
            dist.init_process_group("gloo", store=attempt, rank=rank, world_size=size, timeout=timeout)
        control = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(control, dist.ProcessGroup)  # all ranks are members
    with Peers(beats, rank, size, config.lost_after_s) as peers:
        try:
            yield World(rank, size, chosen, control, local_size, peers)
        except RuntimeError as error:
            if not _is_collective(error):
                raise
            raise PeerLostError(
                f"lost another rank: {peers.explain()} ({str(error).splitlines()[0]})"
            ) from error
    # Not in a `finally`: after a failure the peers may be gone, and leaving the group would wait for them.
    dist.destroy_process_group()


class PeerLostError(FeedlineError):
    """A collective failed because another rank has gone; says which."""


def _is_collective(error: RuntimeError) -> bool:
    # What gloo and NCCL say when a peer has gone.
    signs = ("by peer", "Broken pipe", "imed out", "remote process", "Connection refused", "NCCL")
    return any(sign in str(error) for sign in signs)


def end_with_parent() -> None:
    """Ask Linux for SIGTERM when torchrun dies: its ranks would train on, unseen, beside those of its successor."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(parent_death_signal, signal.SIGTERM)


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
