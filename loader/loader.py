"""The loader: order → read → parameters → backend → `Batch`, with a position that can be saved."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from loader.augment import Transform
from loader.backend import Backend, Pending, UndecodableError
from loader.order import Ids, epoch_order, num_steps, rank_ids
from loader.reader import ShardReader
from loader.resolve import resolve_backend, resolve_device, usable_cores
from shard.dataset import Dataset
from shard.errors import FeedlineError


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of one rank. Its tensors stay valid for as long as something refers to them.

    Attributes:
        images: uint8 [B, H, W, 3] on the loader's device; padding rows are black.
        labels: int64 [B] on the loader's device; 0 in padding rows.
        ids: int64 [B] on the CPU, row numbers of the split's index; -1 in padding rows.
        valid: bool [B] on the loader's device; False in padding rows.
        num_valid: how many rows are valid, known without asking the device.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    valid: torch.Tensor
    num_valid: int


class Loader:
    """Feeds one rank with batches of decoded, augmented images. A context manager.

    Iterating goes from the current position (`epoch`, `samples_consumed`) to the end of that epoch, then
    the position moves to the start of the next one: iterating again gives the next epoch, newly shuffled.
    A loop that is left early keeps its position. Only the newest iterator is live.

    What a sample becomes is a function of (seed, epoch, sample id) alone. World size, batch size, threads
    and backend do not change which samples with which crops make up a global batch of a given size.

    Args:
        data: dataset folder made by `python -m shard build`, or an opened `Dataset`.
        split: name of the split, such as "train".
        transform: `RandomResizedCrop`, `ResizeCenterCrop`, `PadCrop`, or anything like them.
        batch_size: samples per rank and step.
        shuffle: a new global permutation every epoch; otherwise index order.
        drop_last: leave out the samples that do not fill a last global batch (others every epoch, when
            shuffled); otherwise the last batch is padded and masked, and every sample comes exactly once.
        seed: of the order and the augmentation.
        rank: this process's number among all.
        world_size: number of processes that share each global batch.
        device: where batches are wanted; a CUDA device also decodes there with the DALI backend.
        backend: "dali", "torch", or "auto": DALI for a GPU where it is installed, else torch.
        threads: CPU threads for decoding; None: all cores this process may run on.
        prefetch: batches prepared ahead of the one in use.

    Raises:
        FeedlineError: a wrong argument, no such dataset or split, or an image that does not decode.
    """

    def __init__(
        self,
        data: str | Path | Dataset,
        split: str,
        transform: Transform,
        *,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        backend: str = "auto",
        threads: int | None = None,
        prefetch: int = 3,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("world_size", world_size), ("prefetch", prefetch)):
            if value < 1:
                raise FeedlineError(f"{name} is {value}; it must be at least 1")
        if not 0 <= rank < world_size:
            raise FeedlineError(
                f"rank is {rank}; with world_size {world_size} it must lie in 0 … {world_size - 1}"
            )
        self.dataset = data if isinstance(data, Dataset) else Dataset.open(data)
        self.split = self.dataset.split(split)
        self.transform = transform
        self.batch_size, self.world_size, self.rank = batch_size, world_size, rank
        self.num_samples = len(self.split)
        self.epoch = 0
        self.samples_consumed = 0
        self.wait_s = 0.0
        self._shuffle, self._drop_last, self._seed = shuffle, drop_last, seed
        self._prefetch = prefetch
        self.device = resolve_device(device)
        if len(self) == 0:
            raise FeedlineError(
                f"split {split!r} has {self.num_samples} samples, fewer than one global batch of "
                f"{batch_size * world_size}; use a smaller batch size or drop_last=False"
            )
        self.backend = resolve_backend(backend, self.device)
        self._threads = usable_cores() if threads is None else threads
        if self._threads < 1:
            raise FeedlineError(f"threads is {threads}; it must be at least 1")
        self._reader = ShardReader(self.split)
        self._backend: Backend | None = None
        self._in_flight: deque[tuple[Ids, Pending]] = deque()
        self._run = 0  # number of the newest iterator; the position was moved where an iterator's differs
        self._closed = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.dataset.classes

    @property
    def num_classes(self) -> int:
        """How many classes the dataset has."""
        return len(self.dataset.classes)

    def __len__(self) -> int:
        """Return the steps of a whole epoch, the same on every rank."""
        return num_steps(self.num_samples, 0, self.batch_size * self.world_size, drop_last=self._drop_last)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate from the current position to the end of the epoch."""
        if self._closed:
            raise FeedlineError("this Loader is closed; make a new one")
        self._run += 1
        return self._iterate(self._run)

    def _iterate(self, run: int) -> Iterator[Batch]:
        self._require_newest(run)
        self._abandon()  # what an iterator that was left early had ordered
        start, global_batch = self.samples_consumed, self.batch_size * self.world_size
        order = epoch_order(self.num_samples, self._seed, self.epoch, shuffle=self._shuffle)
        steps = num_steps(self.num_samples, start, global_batch, drop_last=self._drop_last)
        submitted = 0
        try:
            for step in range(steps):
                began = time.perf_counter()
                while submitted < min(steps, step + self._prefetch):
                    self._submit(
                        rank_ids(order, start, submitted, self.batch_size, self.rank, self.world_size)
                    )
                    submitted += 1
                batch = self._finish(*self._in_flight.popleft())
                self.samples_consumed = min(start + (step + 1) * global_batch, self.num_samples)
                self.wait_s += time.perf_counter() - began
                yield batch
                self._require_newest(run)
        finally:
            if run == self._run:
                self._abandon()
        self.epoch, self.samples_consumed = self.epoch + 1, 0

    def _require_newest(self, run: int) -> None:
        if run != self._run:
            raise FeedlineError(
                "this iteration of the Loader is over: it was closed, moved (set_epoch, rewind, "
                "load_state_dict) or iterated anew meanwhile"
            )

    def _submit(self, ids: Ids) -> None:
        if self._backend is None:
            self._backend = self._make_backend()
        width, height = self.split.width[ids], self.split.height[ids]
        params = self.transform.params(self._seed, self.epoch, ids, width, height)
        self._reader.announce(ids)
        pending = self._backend.submit(self._reader.read(ids), params, self.batch_size)
        self._in_flight.append((ids, pending))

    def _finish(self, ids: Ids, pending: Pending) -> Batch:
        try:
            images = pending()
        except UndecodableError as error:
            raise self._undecodable(int(ids[error.row]), error) from error
        n = len(ids)
        pinned = self.device.type == "cuda"
        labels = torch.zeros(self.batch_size, dtype=torch.int64, pin_memory=pinned)
        labels[:n] = torch.from_numpy(self.split.label[ids])
        valid = torch.zeros(self.batch_size, dtype=torch.bool, pin_memory=pinned)
        valid[:n] = True
        all_ids = torch.full((self.batch_size,), -1, dtype=torch.int64)
        all_ids[:n] = torch.from_numpy(ids)
        return Batch(
            images,
            labels.to(self.device, non_blocking=True),
            all_ids,
            valid.to(self.device, non_blocking=True),
            n,
        )

    def _undecodable(self, sample: int, error: UndecodableError) -> FeedlineError:
        split = self.split
        path = split.shard_path(int(split.shard[sample]))
        return FeedlineError(
            f"sample {sample} (key {split.key(sample)}, offset {int(split.offset[sample])} in {path}) "
            f"does not decode: {error}; run `python -m shard verify {self.dataset.root} --decode`"
        )

    def _abandon(self) -> None:
        """Forget batches in flight. Their backend goes with them: a new one is surely clean."""
        if self._in_flight:
            self._in_flight.clear()
            self._drop_backend()

    def _drop_backend(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def _make_backend(self) -> Backend:
        if self.backend == "dali":
            from loader.dali_backend import DaliBackend  # only here: DALI has no wheel for some systems

            return DaliBackend(self.device, self._threads, self.batch_size)
        from loader.torch_backend import TorchBackend

        return TorchBackend(self.device, self._threads)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; does nothing if already in it, so that a resumed position is kept."""
        if epoch != self.epoch:
            self._seek(epoch, 0)

    def rewind(self) -> None:
        """Go back to the start of the current epoch."""
        self._seek(self.epoch, 0)

    def _seek(self, epoch: int, samples_consumed: int) -> None:
        self._run += 1  # an iterator that is still live belongs to the old position
        self.epoch, self.samples_consumed = epoch, samples_consumed

    def state_dict(self) -> dict[str, Any]:
        """Position, and what it is a position in; JSON-able, independent of world and batch size."""
        return {
            "epoch": self.epoch,
            "samples_consumed": self.samples_consumed,
            "seed": self._seed,
            "split": self.split.name,
            "dataset": self.dataset.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            FeedlineError: the state belongs to another dataset, split or seed.
        """
        for key, mine in self.state_dict().items():
            if key not in ("epoch", "samples_consumed") and state[key] != mine:
                raise FeedlineError(
                    f"the saved loader state has {key} {state[key]!r}, this loader {mine!r}: "
                    "it can only continue on the same data in the same order"
                )
        self._seek(int(state["epoch"]), int(state["samples_consumed"]))

    def close(self) -> None:
        """Stop the background threads and free memory; iterating afterwards is an error."""
        self._closed = True
        self._run += 1
        self._in_flight.clear()
        self._drop_backend()
        self._reader.close()

    def __enter__(self) -> Loader:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
