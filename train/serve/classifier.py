"""From uploads to probabilities: what `python -m train predict` does to a file, in two steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loader.torch_backend import TorchBackend
from shard.image import MAX_PIXELS, BadImageError, Checked, NotAnImageError, Policy, check, size_of
from train.inference import Network, top_classes
from train.serve.refused import RefusedError
from train.serve.upload import Upload
from train.trained import Trained


@dataclass(frozen=True, slots=True)
class Input:
    """An image as the network takes it.

    Attributes:
        pixels: uint8 [size, size, 3].
        top: how many classes are asked for.
    """

    pixels: torch.Tensor
    top: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the network says.

    Attributes:
        labels: of the likeliest classes, the likeliest first.
        probabilities: float32 values, theirs.
    """

    labels: list[int]
    probabilities: list[float]


class Classifier:
    """Decodes on the CPU, each image alone, and runs the network on as many as there are.

    A damaged or large image so costs its own request time and not a batch, and what waits for the network is as small
    as its input.

    Args:
        trained: the run.
        network: its forward pass.
        policy: how images are judged, as datasets are built.
        threads: that call `prepare`.
        max_pixels: of an image; one of more is refused before it is decoded.
        on_batch: told the size of each batch.
    """

    def __init__(
        self,
        trained: Trained,
        network: Network,
        *,
        policy: Policy,
        threads: int,
        max_pixels: int,
        on_batch: Callable[[int], None],
    ) -> None:
        self._network, self._policy, self._on_batch = network, policy, on_batch
        self._max_pixels = min(max_pixels, MAX_PIXELS)
        self._size = trained.config.input.eval_size
        self._transform = trained.config.input.eval_transform()
        self._decoder = TorchBackend(torch.device("cpu"), threads)
        self._lock = threading.Lock()  # the decoder takes images from one thread at a time

    def prepare(self, upload: Upload) -> Input:
        """Check and decode an image; from any thread.

        Raises:
            RefusedError: no image, a damaged one, or one that is too large.
        """
        data = upload.image()
        try:
            width, height = size_of(data)
            if width * height > self._max_pixels:
                raise RefusedError(413, f"{width} x {height} pixels, more than {self._max_pixels:,}")
            return Input(self._decode(check(data, self._policy)), upload.top)
        except NotAnImageError as error:
            raise RefusedError(
                415 if data else 422, str(error) if data else "empty: no image was sent"
            ) from error
        except BadImageError as error:
            raise RefusedError(422, f"damaged image: {error}") from error

    def _decode(self, image: Checked) -> torch.Tensor:
        sides = np.array([[image.width], [image.height]], np.int32)
        params = self._transform.params(0, 0, np.arange(1), sides[0], sides[1])
        if params.resized.astype(np.int64).prod() > MAX_PIXELS:
            raise RefusedError(422, f"{image.width} x {image.height} pixels: too narrow to be resized")
        with self._lock:
            pending = self._decoder.submit([np.frombuffer(image.data, np.uint8)], params, 1)
        decoded = pending()
        if decoded.bad:
            raise RefusedError(422, f"damaged image: {decoded.bad[0]}")
        return decoded.images[0]

    def run(self, batch: Sequence[Input]) -> list[Answer]:
        """Answers of a batch; from one thread."""
        images = torch.stack([one.pixels for one in batch]).to(self._network.device)
        probabilities, labels = top_classes(self._network.logits(images), max(one.top for one in batch))
        self._on_batch(len(batch))
        rows = zip(batch, labels.tolist(), probabilities.tolist(), strict=True)
        return [Answer(best[: one.top], shares[: one.top]) for one, best, shares in rows]

    def warm(self, max_batch: int) -> None:
        """Run the smallest and the largest batch: kernels are chosen, and if memory is short it shows now."""
        black = torch.zeros(self._size, self._size, 3, dtype=torch.uint8)
        for size in (1, max_batch):
            images = black.expand(size, *black.shape).contiguous().to(self._network.device)
            self._network.logits(images).cpu()

    def close(self) -> None:
        """End the decoder's threads."""
        self._decoder.close()
