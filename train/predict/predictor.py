"""From checked images to predictions, in batches; pixels come from the loader's decoder and evaluation transform."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from types import TracebackType

import numpy as np
import torch

from loader.resolve import make_backend, resolve_backend, usable_cores
from loader.threads import ThreadPool
from shard.errors import FeedlineError
from shard.image import MAX_PIXELS, Checked
from train.inference import Network, top_classes
from train.predict.images import Bad, load_image
from train.trained import Trained

_PATIENCE_S = 30.0  # with threads that read and check an image, when they are to end


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a network says to an image.

    Attributes:
        name: of the image.
        classes: names of the k likeliest classes, the likeliest first.
        probabilities: float32 values, theirs.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


class Predictor:
    """Decodes images and runs the network, in batches of a fixed shape. A context manager.

    Args:
        trained: the network.
        network: its forward pass.
        batch_size: rows of every batch; those that are not needed are black.
        top: how many classes.
    """

    def __init__(self, trained: Trained, network: Network, *, batch_size: int, top: int = 5) -> None:
        given = trained.config.input
        self.batch_size, self.threads = batch_size, given.loader_threads or usable_cores()
        self._classes, self._network, self._top = trained.classes, network, top
        self._transform = given.eval_transform()
        backend = resolve_backend(given.loader_backend, network.device)
        self._backend = make_backend(backend, network.device, self.threads, batch_size)

    def __call__(self, names: Sequence[str], images: Sequence[Checked]) -> list[Prediction | Bad]:
        """Predict at most `batch_size` images.

        Raises:
            FeedlineError: the network's output is not finite.
        """
        results: dict[int, Prediction | Bad] = {}
        sizes = np.array([(image.width, image.height) for image in images], np.int32).reshape(-1, 2)
        params = self._transform.params(0, 0, np.arange(len(images)), sizes[:, 0], sizes[:, 1])
        fits = params.resized.astype(np.int64).prod(axis=1) <= MAX_PIXELS
        for row in np.flatnonzero(~fits).tolist():
            width, height = sizes[row].tolist()
            # Resizing the shorter side makes the other one so long that it takes gigabytes.
            results[row] = Bad(names[row], f"{width} x {height} pixels: too narrow to be resized")
        rows = np.flatnonzero(fits)
        if len(rows):
            encoded = [np.frombuffer(images[row].data, np.uint8) for row in rows.tolist()]
            decoded = self._backend.submit(encoded, params.take(rows), self.batch_size)()
            labels, shares = self._top_classes(decoded.images)
            for place, row in enumerate(rows.tolist()):
                name = names[row]
                if place in decoded.bad:
                    results[row] = Bad(name, decoded.bad[place])
                else:
                    results[row] = self._prediction(name, labels[place], shares[place])
        return [results[row] for row in range(len(images))]

    def _top_classes(self, images: torch.Tensor) -> tuple[list[list[int]], list[list[float]]]:
        probabilities, top = top_classes(self._network.logits(images), self._top)
        return top.tolist(), probabilities.tolist()

    def _prediction(self, name: str, labels: list[int], shares: list[float]) -> Prediction:
        if not all(map(math.isfinite, shares)):
            raise FeedlineError(
                f"the network's output is not finite for {name}; try --precision fp32, or an earlier --checkpoint"
            )
        return Prediction(name, tuple(self._classes[label] for label in labels), tuple(shares))

    def __enter__(self) -> Predictor:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the decoder."""
        self._backend.close()


def predict(
    found: Iterable[str | Bad],
    predictor: Predictor,
    load: Callable[[str], Checked | Bad] = load_image,
) -> Iterator[Prediction | Bad]:
    """Predict images in the order of their names; the next ones are read while the network computes.

    Args:
        found: names, and what was no name.
        predictor: of the network.
        load: reads and checks an image; from several threads.
    """
    names = iter(found)
    pool = ThreadPool(predictor.threads, "feedline-predict", _PATIENCE_S)
    try:
        ahead = _start(pool, load, islice(names, predictor.batch_size))
        while ahead:
            now, ahead = ahead, _start(pool, load, islice(names, predictor.batch_size))
            yield from _finish(now, predictor)
    finally:
        pool.close()


_Loading = list[tuple[str, "Future[Checked | Bad] | Bad"]]


def _start(pool: ThreadPool, load: Callable[[str], Checked | Bad], part: Iterable[str | Bad]) -> _Loading:
    return [(one.name, one) if isinstance(one, Bad) else (one, pool.submit(load, one)) for one in part]


def _finish(part: _Loading, predictor: Predictor) -> Iterator[Prediction | Bad]:
    """Results of one batch, in its order."""
    loaded = [(name, one if isinstance(one, Bad) else one.result()) for name, one in part]
    good = [(name, image) for name, image in loaded if not isinstance(image, Bad)]
    results = iter(predictor([name for name, _ in good], [image for _, image in good]))
    for _, one in loaded:
        yield one if isinstance(one, Bad) else next(results)
