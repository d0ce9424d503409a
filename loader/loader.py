"""The loader: order → read → parameters → backend → `Batch`, with a position that can be saved."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from loader.affinity import rank_cores
from loader.arguments import as_order, check_arguments
from loader.bad import BadSample, BadSamples
from loader.batch import Batch, finish
from loader.cache import ShardCache
from loader.counters import Counters, Tracer
from loader.feed import Fed, Feed
from loader.order import Order
from loader.params import Transform
from loader.position import Position
from loader.reader import Reads
from loader.resolve import make_backend, resolve_backend, resolve_device
from loader.tune import Found, Tuner
from loader.walk import Walk
from loader.where import Shards, open_shards
from loader.workers import Workers
from shard.dataset import Dataset
from shard.errors import FeedlineError

_log = logging.getLogger("feedline.loader")
_READERS = 4  # threads that wait for the disk


class Loader(Position):
    """Feeds one rank with batches of decoded, augmented images. A context manager.

    Iterating goes from the current position (`epoch`, `samples_consumed`) to the end of that epoch, then
    the position moves to the start of the next one: iterating again gives the next epoch, newly shuffled.
    A loop that is left early keeps its position. An iterator starts where the loader stands when its first batch is
    asked for, and only the one that started last is live. Not for several threads at once. A loader belongs to the
    process that made it: a forked child gets an error, a pickled copy (spawn) is a new loader at the same position.

    What a sample becomes is a function of (seed, epoch, sample id) alone. World size, batch size, threads
    and backend do not change which samples with which crops make up a global batch of a given size.

    Args:
        data: dataset folder or URL made by `python -m shard build` or `index`, or an opened `Dataset`.
        split: name of the split, such as "train".
        transform: `RandomResizedCrop`, `ResizeCenterCrop`, `PadCrop`, a `Compose` of them, or anything alike.
        batch_size: samples per rank and step.
        shuffle: "none" or False: index order; "global" or True: a new global permutation every epoch; "window":
            shards permuted and mixed a few at a time, for slow disks and object stores; or an `Order`.
        drop_last: leave out the samples that do not fill a last global batch (others every epoch, when
            shuffled); otherwise the last batch is padded and masked, and every sample comes exactly once.
        seed: of the order and the augmentation.
        rank: this process's number among all.
        world_size: number of processes that share each global batch.
        local_world_size: how many of them run on this machine, and share its cores.
        device: where batches are wanted; a CUDA device also decodes there with the DALI backend.
        backend: "dali", "torch", or "auto": DALI for a GPU where it is installed, else torch.
        threads: CPU threads for decoding; None: this rank's share of the cores. They run on the NUMA node of the
            rank's GPU, or of its share of the machine.
        prefetch: batches prepared ahead of the one in use; None: found out in the first steps.
        hw_decoder_load: share of the JPEGs that the GPU's decoding engine gets, 0 … 1; None: found out with the first
            batch. Of the DALI backend on a GPU.
        size_at: output size as a function of (epoch, samples consumed so far), for progressive resizing.
        max_bad: samples that may be masked because they do not decode; one more is an error.
        cache: for a dataset at a URL: a `ShardCache` on a local disk, or its folder; None: in ~/.cache.
        timeout_s: longest wait for a batch.
        trace: collect spans for `export_trace`, and mark NVTX ranges on a GPU.

    Raises:
        FeedlineError: a wrong argument, or no such dataset or split. While iterating: a missing or damaged
            shard, a dataset that changed, more than `max_bad` bad samples, storage that hangs.
    """

    def __init__(
        self,
        data: str | Path | Dataset,
        split: str,
        transform: Transform,
        *,
        batch_size: int,
        shuffle: bool | str | Order = False,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        local_world_size: int = 1,
        device: str | torch.device = "cpu",
        backend: str = "auto",
        threads: int | None = None,
        prefetch: int | None = None,
        hw_decoder_load: float | None = None,
        size_at: Callable[[int, int], int] | None = None,
        max_bad: int = 100,
        cache: ShardCache | str | Path | None = None,
        timeout_s: float = 300.0,
        trace: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name != "self"}
        check_arguments(arguments)
        Position.__init__(self)  # `super` would put a name of its own among the arguments above
        self.dataset = data if isinstance(data, Dataset) else Dataset.open(data)
        self._arguments = arguments | {"data": self.dataset.root}
        self.split = self.dataset.split(split)
        self.batch_size, self.world_size, self.rank = batch_size, world_size, rank
        self.num_samples = len(self.split)
        self.device, self._timeout_s = resolve_device(device), timeout_s
        self._walk = Walk(
            split=self.split, order=as_order(shuffle), transform=transform, seed=seed, batch_size=batch_size,
            rank=rank, world_size=world_size, drop_last=drop_last, size_at=size_at,
        )  # fmt: skip
        if len(self) == 0:
            raise FeedlineError(
                f"split {split!r} has {self.num_samples} samples, fewer than one global batch of "
                f"{batch_size * world_size}; use a smaller batch size or drop_last=False"
            )
        self.backend = resolve_backend(backend, self.device)
        self._cores = rank_cores(self.device, rank % local_world_size, local_world_size)
        self._threads = threads or self._cores.share
        _log.info("%d decoding threads on the cores %s", self._threads, sorted(self._cores.ids))
        self._tuner, self._found = Tuner(prefetch), Found(hw_decoder_load)
        self._shards: Shards = open_shards(self.dataset, self.split, cache, local_world_size, timeout_s)
        remedy = f"run `python -m shard verify {self.dataset.root} --decode`"
        self._bad = BadSamples(self.split, max_bad, remedy)
        self._counters = Counters()
        self._tracer = Tracer(trace, nvtx=trace and self.device.type == "cuda")
        self._workers = Workers(
            partial(
                make_backend, self.backend, self.device, self._threads, batch_size,
                timeout_s=timeout_s, cores=self._cores, found=self._found,
            ),
            partial(Reads, self.split, self._shards.reader, min(_READERS, self._threads), self._tracer),
        )  # fmt: skip
        self._closed = False
        self._pid = os.getpid()

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self._walk.seed,
            "split": self.split.name,
            "dataset": self.dataset.fingerprint,
            # Left out where it does nothing: positions that were saved before there was any go on.
            "order": {k: v for k, v in asdict(self._walk.order).items() if k != "balance" or v},
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.dataset.classes

    @property
    def num_classes(self) -> int:
        """How many classes the dataset has."""
        return len(self.dataset.classes)

    @property
    def wait_s(self) -> float:
        """Seconds that the loop over this loader has waited for it."""
        return self._counters.wait_s

    @property
    def hw_decoder_load(self) -> float | None:
        """Share of the JPEGs that the GPU's decoding engine gets; None: not found out yet, or there is none."""
        return self._found.hw_decoder_load

    @property
    def counters(self) -> Counters:
        """What has been done so far, and where time went."""
        return self._counters

    @property
    def bad_samples(self) -> list[BadSample]:
        """Samples that were masked so far, each once."""
        return self._bad.all

    def export_trace(self, path: str | Path) -> None:
        """Write what `trace` collected for chrome://tracing or ui.perfetto.dev."""
        self._tracer.export(Path(path))

    def __len__(self) -> int:
        """Return the steps of a whole epoch, the same on every rank."""
        return self._walk.steps(0)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate from the current position to the end of the epoch."""
        self._require_usable()
        return self._iterate()

    def _require_usable(self) -> None:
        if self._closed:
            raise FeedlineError("this Loader is closed; make a new one")
        if os.getpid() != self._pid:
            raise FeedlineError(
                "this Loader was made before this process was forked, and its threads stayed behind; make it in the "
                "process that iterates (no DataLoader with workers around it: it has threads of its own)"
            )

    def _iterate(self) -> Iterator[Batch]:
        # All of this when the first batch is asked for: Lightning makes the iterator, and then sets the epoch.
        self._require_usable()
        self._run += 1
        run = self._run
        self._workers.abandon()  # what an iterator that was left early had ordered
        self._require_unchanged()
        start = self.samples_consumed
        steps = self._walk.steps(start)
        feed = self._start_feed(start, steps)
        try:
            for step in range(steps):
                self._require_usable()
                began = time.perf_counter()
                read_wait_s = self._counters.read_wait_s
                batch = self._finish(feed.take(step, self._tuner.depth, self._tuner.read_ahead))
                read_wait_s = self._counters.read_wait_s - read_wait_s
                self._shards.done(step)
                self.samples_consumed = min(start + (step + 1) * self._walk.global_batch, self.num_samples)
                waited = time.perf_counter() - began
                self._count(batch, waited)
                yield batch
                self._tuner.observe(waited, read_wait_s, time.perf_counter() - began)
                self._require_newest(run)
        finally:
            if run == self._run:
                self._workers.abandon()
        self.epoch, self.samples_consumed = self.epoch + 1, 0

    def _start_feed(self, start: int, steps: int) -> Feed:
        epoch, draws = self.epoch, self._walk.draws(self.epoch)
        self._shards.begin(self._walk.plan(epoch, draws, start))
        return self._workers.feed(
            lambda reads, backend: Feed(
                lambda step: self._walk.request(epoch, draws, start, step),
                steps,
                self.batch_size,
                reads,
                backend,
                self._shards.available,
                self._timeout_s,
                self._counters,
                self._tracer,
                self._bad.rows,
            )
        )

    def _require_unchanged(self) -> None:
        now = self._shards.fingerprint()
        if now != self.dataset.fingerprint:
            raise FeedlineError(
                f"the dataset {self.dataset.root} changed under this job: its fingerprint was "
                f"{self.dataset.fingerprint[:12]}…, now it is {now[:12]}…; start again with the new one"
            )

    def _finish(self, fed: Fed) -> Batch:
        for row, reason in fed.bad.items():
            self._bad.add(int(fed.ids[row]), reason)
        return finish(fed, self.split.targets(fed.ids), self.batch_size, self.device)

    def _count(self, batch: Batch, waited: float) -> None:
        counters = self._counters
        counters.wait_s += waited
        counters.batches += 1
        counters.samples += batch.num_valid
        counters.bad = len(self._bad.all)
        counters.prefetch, counters.read_ahead = self._tuner.depth, self._tuner.read_ahead
        counters.fetch_wait_s = self._shards.wait_s

    def close(self) -> None:
        """Stop the background threads and free memory; iterating afterwards is an error."""
        self._closed = True
        if os.getpid() != self._pid:
            return  # a forked child: threads, and locks in the cache, are its parent's
        self._run += 1
        self._workers.close()
        self._shards.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as arguments and position; the copy opens everything anew."""
        return _rebuild, (self._arguments, self.epoch, self.samples_consumed)

    def __enter__(self) -> Loader:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _rebuild(arguments: dict[str, Any], epoch: int, samples_consumed: int) -> Loader:
    loader = Loader(**arguments)
    loader._seek(epoch, samples_consumed)
    return loader
