"""Any image of any batch again, alone: the samples, epoch and seed are enough, because nothing else decided on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loader.batch import finish
from loader.cache import ShardCache
from loader.counters import Counters, Tracer
from loader.feed import Feed, Request
from loader.order import Ids
from loader.params import Transform
from loader.reader import Reads
from loader.resolve import make_backend, resolve_backend, resolve_device, usable_cores
from loader.where import open_shards
from shard.dataset import Dataset
from shard.errors import FeedlineError

_DECODING, _READING = 2, 2  # batches in work


@dataclass(frozen=True, slots=True)
class Replayed:
    """Images as a `Loader` gives them.

    Attributes:
        images: uint8 [E, B, size, size, 3] on the CPU: in each of E epochs, the B samples.
        bad: reason by sample id, of samples that cannot be read or decoded; they are black.
    """

    images: npt.NDArray[np.uint8]
    bad: dict[int, str]


def replay(
    data: str | Path | Dataset,
    split: str,
    transform: Transform,
    ids: Sequence[int],
    epochs: Sequence[int] = (0,),
    *,
    seed: int = 0,
    repetition: int = 0,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    cache: ShardCache | str | Path | None = None,
    timeout_s: float = 300.0,
) -> Replayed:
    """Produce images of past or future batches, whatever the world size and batch size were.

    Args:
        data: dataset folder or URL, or an opened `Dataset`.
        split: name of the split.
        transform: what the `Loader` has.
        ids: B samples, as in `Batch.ids`.
        epochs: E epochs, each ≥ 0.
        seed: what the `Loader` has.
        repetition: with an order that repeats samples, which of their repetitions.
        device: where to decode; another one decodes a little differently (see docs/benchmarks.md).
        backend: "dali", "torch" or "auto", as in the `Loader`.
        cache: for a dataset at a URL, as in the `Loader`.
        timeout_s: longest wait for a batch.

    Raises:
        FeedlineError: no such dataset, split, sample or epoch; a shard that is missing; storage that hangs.
    """
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    rows = dataset.split(split)
    _check(ids, len(rows), split, epochs, repetition)
    samples = np.array(ids, np.int64)
    width, height = rows.width[samples], rows.height[samples]
    keys = samples + repetition * len(rows)  # as `Order.draws` numbers them

    def request(step: int) -> Request:
        return Request(samples, transform.params(seed, epochs[step], keys, width, height))

    def plan(ahead: int) -> Iterator[Ids]:
        return iter([] if ahead else [samples] * len(epochs))

    on = resolve_device(device)
    threads = usable_cores()
    shards = open_shards(dataset, rows, cache, local_world_size=1)
    decoder = make_backend(resolve_backend(backend, on), on, threads, len(samples), timeout_s=timeout_s)
    reads = Reads(rows, shards.reader, threads)
    try:
        shards.begin(plan)
        feed = Feed(
            request, len(epochs), len(samples), reads, decoder, shards.available, timeout_s, Counters(), Tracer()
        )  # fmt: skip
        return _collect(feed, len(epochs), rows.targets(samples), on)
    finally:
        decoder.close()
        reads.close()
        shards.close()


def _collect(feed: Feed, epochs: int, labels: npt.NDArray[Any], device: torch.device) -> Replayed:
    images: list[npt.NDArray[np.uint8]] = []
    bad: dict[int, str] = {}
    for step in range(epochs):
        fed = feed.take(step, _DECODING, _READING)
        images.append(finish(fed, labels, len(labels), device).images.cpu().numpy())
        bad |= {int(fed.ids[row]): reason for row, reason in fed.bad.items()}
    return Replayed(np.stack(images), bad)


def _check(ids: Sequence[int], count: int, split: str, epochs: Sequence[int], repetition: int) -> None:
    for name, values in (("ids", ids), ("epochs", epochs)):
        if not len(values):
            raise FeedlineError(f"{name} is empty; give at least one")
    for sample in ids:
        if not 0 <= sample < count:
            raise FeedlineError(f"there is no sample {sample}; split {split!r} has the ids 0 … {count - 1}")
    for epoch in epochs:
        if epoch < 0:
            raise FeedlineError(f"epoch is {epoch}; it must not be negative")
    if repetition < 0:
        raise FeedlineError(f"repetition is {repetition}; it must not be negative")
