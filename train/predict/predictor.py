"""From checked images to predictions, in batches; pixels come from the loader's decoder and evaluation transform."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from types import TracebackType

from loader.threads import ThreadPool
from shard.image import Checked
from train.inference import Network
from train.predict.images import Bad, Given, is_sideways, load_image
from train.predict.pixels import Pixels
from train.trained import Trained

_PATIENCE_S = 30.0  # with threads that read and check an image, when they are to end


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a network says to an image.

    Attributes:
        name: of the image.
        classes: names of the k likeliest classes, the likeliest first.
        probabilities: float32 values, theirs.
        sideways: whether its camera noted that it is to be turned, which the run's dataset does not do.
        multi_label: whether each class is judged by itself, so that any number of them may be predicted.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    sideways: bool = False
    multi_label: bool = False


class Predictor:
    """Decodes images and runs the network, in batches of a fixed shape. A context manager.

    Args:
        trained: the network.
        network: its forward pass.
        batch_size: rows of every batch; those that are not needed are black.
        top: how many classes.

    Attributes:
        policy: what images are checked by, before they come here; see `load_image`.
    """

    def __init__(self, trained: Trained, network: Network, *, batch_size: int, top: int = 5) -> None:
        self.batch_size, self.policy = batch_size, trained.images
        self._classes, self._network, self._top = trained.classes, network, top
        self._multi_label = trained.multi_label
        self._pixels = Pixels(trained, network.device, batch_size)
        self.threads = self._pixels.threads

    def __call__(
        self, names: Sequence[str], images: Sequence[Checked], *, filled: bool = True
    ) -> list[Prediction | Bad]:
        """Predict at most `batch_size` images.

        Args:
            names: theirs.
            images: checked.
            filled: whether the network computes the black rows, too, so that it always sees the same shape.
        """
        if not images:
            return []
        decoded = self._pixels(images)
        rows_there = decoded.images if filled else decoded.images[: len(images)]
        probabilities, labels = self._network.likeliest(rows_there, self._top)
        rows = zip(names, images, labels.tolist(), probabilities.tolist(), strict=False)  # the rest is black
        return [
            Bad(name, decoded.bad[row]) if row in decoded.bad else self._prediction(name, image, best, shares)
            for row, (name, image, best, shares) in enumerate(rows)
        ]

    def _prediction(
        self, name: str, image: Checked, labels: list[int], shares: list[float]
    ) -> Prediction | Bad:
        if not all(map(math.isfinite, shares)):
            # As in `serve` one image's fault: what the others get is not lost by it.
            return Bad(
                name, "the network's output is not finite; try --precision fp32, or an earlier --checkpoint"
            )
        classes = tuple(self._classes[label] for label in labels)
        sideways = is_sideways(image, self.policy)
        return Prediction(name, classes, tuple(shares), sideways, self._multi_label)

    def __enter__(self) -> Predictor:
        """Return itself."""
        self._pixels.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the decoder."""
        self._pixels.__exit__(kind, error, trace)


def predict(found: Iterable[str | Given | Bad], predictor: Predictor) -> Iterator[Prediction | Bad]:
    """Predict images in their order; the next ones are read while the network computes.

    Args:
        found: names of files, images, and what is neither.
        predictor: of the network.
    """
    images = iter(found)
    pool = ThreadPool(predictor.threads, "feedline-predict", _PATIENCE_S)
    try:
        ahead = _start(pool, predictor, images)
        filled = len(ahead) == predictor.batch_size  # a few images are not worth computing a whole batch for
        while ahead:
            now, ahead = ahead, _start(pool, predictor, images)
            yield from _finish(now, predictor, filled=filled)
    finally:
        pool.close()


_Loading = list[tuple[str, "Future[Checked | Bad] | Bad"]]


def _start(pool: ThreadPool, predictor: Predictor, images: Iterator[str | Given | Bad]) -> _Loading:
    """Begin to read and check the next batch."""
    return [
        (
            image if isinstance(image, str) else image.name,
            image if isinstance(image, Bad) else pool.submit(load_image, image, predictor.policy),
        )
        for image in islice(images, predictor.batch_size)
    ]


def _finish(part: _Loading, predictor: Predictor, *, filled: bool) -> Iterator[Prediction | Bad]:
    """Results of one batch, in its order."""
    loaded = [(name, one if isinstance(one, Bad) else one.result()) for name, one in part]
    good = [(name, image) for name, image in loaded if not isinstance(image, Bad)]
    results = iter(predictor([name for name, _ in good], [image for _, image in good], filled=filled))
    for _, one in loaded:
        yield one if isinstance(one, Bad) else next(results)
