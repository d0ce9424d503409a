"""The stages, each with its reference."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.guard.by_hand import ByHand
from bench.overhead import Ours, Reference
from bench.stages import synchronize, train_on
from loader import Batch, Loader
from loader.affinity import Cores, pinned, usable_ids
from loader.jpeg import Decoder
from loader.reader import Reads, ShardReader
from loader.resolve import make_backend
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.build import make_step
from train.config import Config
from train.distributed import World
from train.step import TrainStep

_PATIENCE_S = 300.0
# Images and batches per step. The shorter a step, the more turns of ours and the reference in the same time; the
# longer, the less it weighs that the loader starts.
_DECODED, _TRANSFORMED = 16, 64
BATCHES, _TRAINED_BATCHES = 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A stage of ours and the same work by hand; a step of either handles the same images.

    Attributes:
        name: of the stage.
        title: for people.
        images: per step.
        ours: a step.
        reference: a step, without our code.
        serial: whether one thread after the other works, so that waiting for a core adds to the time.
        upstream: stages whose slowness shows in this one too.
    """

    name: str
    title: str
    images: int
    ours: Callable[[], None]
    reference: Callable[[], None]
    serial: bool
    upstream: tuple[str, ...] = ()


class Workshop:
    """Makes the pairs. A context manager, which frees what they need.

    Args:
        config: gives data, transform, batch size and model.
        device: where training would run.

    Raises:
        FeedlineError: the dataset cannot be read or is too small, or the model cannot be made.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        if config.data is None:
            raise FeedlineError("data is missing; give --data DATASET")
        self.config = replace(config, step=replace(config.step, accumulate=1))
        self.device = device
        self.dataset = Dataset.open(config.data)
        self._stack = ExitStack()
        self._batch_size = config.input.batch_size
        self.loader = self._stack.enter_context(self._loader())
        self._start = self._begin()
        ids = [batch.ids.numpy() for batch in self._pass()]
        # Of the single threads that work in serial pairs. A thread tends to stay where it is: with ours on one core and
        # the reference on another, a ratio is of these cores, up to 15 % off for as long as the process lives.
        self._core = Cores(frozenset({max(usable_ids())}), 1)
        split, transform = self.dataset.split(config.input.train_split), config.input.train_transform()
        self.hand = ByHand(split, transform, ids, self._core)
        self._stack.callback(self.hand.close)

    def make(self) -> list[Pair]:
        """Make all pairs, in the order of the pipeline."""
        pairs = [self._read()]
        own = self.loader.backend == "torch"
        if own:
            pairs.append(self._decode())
        return [*pairs, self._transform(("decode",) if own else ()), self._load(), *self._training()]

    def _loader(self) -> Loader:
        images = self.config.input
        return Loader(
            self.dataset, images.train_split, images.train_transform(), batch_size=images.batch_size, shuffle=True,
            drop_last=True, device=self.device, backend=images.loader_backend, threads=images.loader_threads,
        )  # fmt: skip

    def _begin(self) -> dict[str, Any]:
        """The position from which an epoch has `BATCHES` batches left, so that a pass ends with nothing in flight."""
        wanted = BATCHES * self._batch_size
        if self.loader.num_samples < wanted:
            raise FeedlineError(
                f"split {self.loader.split.name!r} has {self.loader.num_samples} samples, the guard needs {BATCHES} "
                f"batches of {self._batch_size}; lower --batch-size"
            )
        return self.loader.state_dict() | {"epoch": 0, "samples_consumed": self.loader.num_samples - wanted}

    def _pass(self) -> list[Batch]:
        self.loader.load_state_dict(self._start)
        return list(self.loader)

    def _read(self) -> Pair:
        split, ids = self.loader.split, self.hand.ids
        reader = ShardReader(split)
        with pinned(self._core):
            reads = Reads(split, reader, 1)
        self._stack.callback(reader.close)
        self._stack.callback(reads.close)

        def ours() -> None:
            _require_good(reads.start(ids).wait(_PATIENCE_S))

        title = "reading: bytes of shuffled samples, checked"
        return Pair(
            name="read", title=title, images=len(ids), ours=ours, reference=lambda: self.hand.read(len(ids)),
            serial=True,
        )  # fmt: skip

    def _decode(self) -> Pair:
        count = min(_DECODED, len(self.hand.ids))
        encoded, windows = self.hand.encoded[:count], self.hand.params.window[:count].tolist()
        decoder = Decoder()

        def ours() -> None:
            for one, window in zip(encoded, windows, strict=True):
                decoder.window(one, *window)

        title = "decoding: the windows of the crops, one thread"
        return Pair(
            name="decode", title=title, images=count, ours=ours, reference=lambda: self.hand.decode(count), serial=True
        )  # fmt: skip

    def _transform(self, upstream: tuple[str, ...]) -> Pair:
        count = min(_TRANSFORMED, len(self.hand.ids))
        encoded, params = self.hand.blank[:count], self.hand.params.take(self.hand.rows[:count])
        backend = make_backend(self.loader.backend, self.device, 1, count, cores=self._core)
        self._stack.callback(backend.close)

        def ours() -> None:
            _require_good(backend.submit(encoded, params, count)().bad)

        title = "transforming: resize and flip of blank images, one thread"
        return Pair(
            name="transform", title=title, images=count, ours=ours,
            reference=lambda: self.hand.transform(count), serial=True, upstream=upstream,
        )  # fmt: skip

    def _load(self) -> Pair:
        def ours() -> None:
            self.loader.load_state_dict(self._start)
            for _ in self.loader:
                pass

        return Pair(
            name="loader", title="loader: finished batches, all threads", images=len(self.hand.ids), ours=ours,
            reference=self.hand.load, serial=False, upstream=("read", "decode", "transform"),
        )  # fmt: skip

    def _training(self) -> list[Pair]:
        classes = len(self.dataset.classes)
        step = make_step(self.config, classes, World(device=self.device))
        step.net.train()
        batch = self._pass()[0]
        compiled = (
            self.device.type == "cuda" if self.config.step.compile is None else self.config.step.compile
        )
        plain = Reference(copy.deepcopy(step.net), self.config, batch, compiled=compiled, classes=classes)
        ours = Ours(step, itertools.repeat(batch), self.config)
        alone = Pair(
            name="step", title="training step on one batch", images=self._batch_size,
            ours=_quiet(ours.step), reference=_quiet(plain.step), serial=True,
        )  # fmt: skip
        return [alone, self._real(step, plain)]

    def _real(self, step: TrainStep, plain: Reference) -> Pair:
        start = dict(self._start)
        start["samples_consumed"] += (BATCHES - _TRAINED_BATCHES) * self._batch_size
        net = plain.net

        def ours() -> None:
            self.loader.load_state_dict(start)
            for batch in self.loader:
                train_on(step, batch)

        def reference() -> None:
            for images, labels in self.hand.batches(BATCHES - _TRAINED_BATCHES):
                pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float()
                plain.train(
                    torch.addcmul(net.shift, pixels, net.scale), torch.from_numpy(labels).to(self.device)
                )

        return Pair(
            name="real", title="training on real data", images=_TRAINED_BATCHES * self._batch_size, ours=ours,
            reference=reference, serial=False, upstream=("read", "decode", "transform", "loader", "step"),
        )  # fmt: skip

    def synchronize(self) -> None:
        """Wait for the GPU."""
        synchronize(self.device)

    def __enter__(self) -> Workshop:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Free threads and memory."""
        self._stack.close()


def _quiet(step: Callable[[], tuple[int, int]]) -> Callable[[], None]:
    def quiet() -> None:
        step()

    return quiet


def _require_good(bad: dict[int, str]) -> None:
    if bad:
        raise FeedlineError(f"a sample is damaged: {next(iter(bad.values()))}; run `python -m shard verify`")
