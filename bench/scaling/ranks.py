"""What the ranks of a scaling measurement do, under torchrun: train in groups of different sizes, in turn.

All ranks start once. For every repeat and every count the first ranks form a group of that size, train, and part; the
others sleep meanwhile. So counts are interleaved on the same machines, and no process starts between two of them.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from bench.long_epochs import with_long_epochs
from bench.scaling.network import Measured
from bench.stages import endless_batches, synchronize, train_on
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.build import make_step
from train.config import Config
from train.distributed import World, end_with_parent
from train.inputs import train_loader

SIZES = tuple(2**k for k in (12, 14, 16, 18, 20, 22, 24, 25))  # bytes: 4 KiB to 32 MiB
PROGRESS = "scaling: "  # what a line of progress begins with
_TIMEOUT = timedelta(seconds=300)
_WARM_STEPS, _LEAST_STEPS, _DRAIN = 3, 4, 4
_ALL_REDUCES = 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the ranks measure; can be pickled.

    Attributes:
        config: of the training; its batch size is that of one rank (weak) or of all (strong).
        strong: the global batch stays the same.
        over: what is counted, for people.
        counts: groups to form.
        unit: ranks per count: 1, or those of a node.
        device: "cpu" or "cuda".
        repeats: of every count, interleaved.
        seconds: of each.
    """

    config: Config
    strong: bool
    over: str
    counts: tuple[int, ...]
    unit: int
    device: str
    repeats: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Ranks:
    """All processes that torchrun started, and which of them is ours."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    store: Store

    @classmethod
    def join(cls) -> Ranks:
        """Meet the others."""
        store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        return cls(rank, size, local_rank, local_size, PrefixStore("feedline-scaling", store))


def measure_ranks(job: Job, ranks: Ranks) -> dict[str, Any] | None:
    """Measure with all ranks; collective. Rank 0 gets images/s by count, and all-reduces; the others None.

    Raises:
        FeedlineError: too few ranks, or a batch that does not divide.
    """
    if max(job.counts) * job.unit > ranks.size:
        raise FeedlineError(
            f"--counts asks for {max(job.counts)} × {job.unit} processes, but torchrun started {ranks.size}"
        )
    if job.device == "cpu":
        torch.set_num_threads(1)  # the same for every count, so that a process is as much to work with
    else:
        torch.cuda.set_device(ranks.local_rank)
    rates: dict[int, list[float]] = {count: [] for count in job.counts}
    gradient_bytes = 0
    for repeat in range(job.repeats):
        for i in range(len(job.counts)):
            count = job.counts[(i + repeat) % len(job.counts)]
            name = f"repeat {repeat + 1} of {job.repeats}, {count}"
            with _Group(job, ranks, count, name) as group:
                if group.member:
                    if ranks.rank == 0:
                        print(f"{PROGRESS}{name} {job.over}", file=sys.stderr, flush=True)
                    rate, gradient_bytes = _train(job, group)
                    rates[count].append(round(rate, 2))
    all_reduces = _all_reduces(job, ranks)
    if ranks.rank > 0:
        return None
    return {
        "images_per_s": {str(count): values for count, values in rates.items()},
        "gradient_bytes": gradient_bytes,
        "all_reduces": [asdict(point) for point in all_reduces],
        "backend": _backend(job),
        "local_size": ranks.local_size,
    }


class _Group:
    """The first `count` units as a process group of their own; the others wait until it is over."""

    def __init__(self, job: Job, ranks: Ranks, count: int, name: str) -> None:
        self.size = count * job.unit
        self.member = ranks.rank < self.size
        self.store = PrefixStore(name, ranks.store)
        self._ranks, self._job = ranks, job
        device = torch.device("cpu") if job.device == "cpu" else torch.device("cuda", ranks.local_rank)
        self.world = World(ranks.rank, self.size, device, local_size=min(self.size, ranks.local_size))

    def __enter__(self) -> _Group:
        if self.member and self.size > 1:
            dist.init_process_group(
                _backend(self._job), store=PrefixStore("group", self.store), rank=self._ranks.rank,
                world_size=self.size, timeout=_TIMEOUT,
            )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            return  # torchrun ends the others
        if self.member and self.size > 1:
            dist.destroy_process_group()
        if self._ranks.rank == 0:
            self.store.set("over", "1")
        self.store.wait(["over"], _TIMEOUT)  # asleep: the socket is waited for


def _backend(job: Job) -> str:
    return "gloo" if job.device == "cpu" else "nccl"


def _train(job: Job, group: _Group) -> tuple[float, int]:
    """Images/s of the whole group, and the bytes of its gradients."""
    world, config = group.world, job.config
    batch = config.input.batch_size * (1 if job.strong else world.size)
    config = replace(config, input=replace(config.input, batch_size=batch))
    assert config.data is not None
    dataset = with_long_epochs(Dataset.open(config.data), config.input.train_split, batch)
    step = make_step(config, len(dataset.classes), world)
    step.train()
    with train_loader(config.input, dataset, config.seed, 1, world) as loader:
        batches = endless_batches(loader)
        for _ in range(_DRAIN):  # what the loader has in stock does not count
            next(batches)

        def train(steps: int) -> float:
            began = time.perf_counter()
            for _ in range(steps):
                train_on(step, next(batches))
            synchronize(world.device)
            return time.perf_counter() - began

        train(_WARM_STEPS)
        step_s = train(_WARM_STEPS) / _WARM_STEPS
        if world.rank == 0:  # one decides, for all must do as many
            group.store.set("steps", str(max(_LEAST_STEPS, ceil(job.seconds / step_s))))
        steps = int(group.store.get("steps"))
        rate = steps * batch / train(steps)
    parameters = [p for p in step.net.parameters() if p.requires_grad]
    return rate, sum(p.numel() * p.element_size() for p in parameters)


def _all_reduces(job: Job, ranks: Ranks) -> list[Measured]:
    """Median seconds of all-reduces of several sizes, in turn, for every count with several ranks.

    The turns go up and down the sizes: a small message just after the largest one takes several times as long.
    """
    found: list[Measured] = []
    for count in job.counts:
        if count * job.unit < 2:
            continue
        with _Group(job, ranks, count, f"all-reduces of {count}") as group:
            if not group.member:
                continue
            messages = {size: torch.zeros(size // 4, device=group.world.device) for size in SIZES}
            for message in messages.values():
                _all_reduce_s(message)  # the first one connects
            rounds = [
                {size: _all_reduce_s(messages[size]) for size in (SIZES if number % 2 else reversed(SIZES))}
                for number in range(_ALL_REDUCES)
            ]
            found += [Measured(group.size, size, median(one[size] for one in rounds)) for size in SIZES]
    return found


def _all_reduce_s(message: torch.Tensor) -> float:
    dist.barrier()
    began = time.perf_counter()
    dist.all_reduce(message)
    if message.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main(arguments: list[str]) -> int:
    """Measure what the pickled job in the first file says, and write the result into the second one, as JSON."""
    end_with_parent()
    job: Job = pickle.loads(Path(arguments[0]).read_bytes())
    try:
        result = measure_ranks(job, Ranks.join())
    except FeedlineError as error:
        Path(f"{arguments[1]}.error").write_text(str(error))
        raise
    if result is not None:
        Path(arguments[1]).write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
