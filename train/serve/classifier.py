"""From uploads to probabilities: what `python -m train predict` does to a file, in two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from shard.errors import FeedlineError
from shard.image import MAX_PIXELS, BadImageError, NotAnImageError, TooManyPixelsError, size_of
from train.inference import Network
from train.predict import Bad, Given, Pixels, load_image
from train.predict.images import is_sideways
from train.serve.refused import RefusedError
from train.serve.upload import Upload
from train.trained import Trained


@dataclass(frozen=True, slots=True)
class Input:
    """An image as the network takes it.

    Attributes:
        pixels: uint8 [size, size, 3].
        top: how many classes are asked for.
        sideways: whether its camera noted that it is to be turned, which the run's dataset does not do.
    """

    pixels: torch.Tensor
    top: int
    sideways: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What the network says.

    Attributes:
        labels: of the likeliest classes, the likeliest first.
        probabilities: float32 values, theirs.
        sideways: of the image.
    """

    labels: list[int]
    probabilities: list[float]
    sideways: bool


class Classifier:
    """Decodes on the CPU, each image alone, and runs the network on as many as there are.

    A damaged or large image so costs its own request time and not a batch, and what waits for the network is as small
    as its input.

    Args:
        trained: the run; its configuration says how many threads decode.
        network: its forward pass.
        max_pixels: of an image; one of more is refused before it is decoded.
        on_batch: told the size of each batch.

    Attributes:
        threads: that `prepare` is worth calling from.
    """

    def __init__(
        self, trained: Trained, network: Network, *, max_pixels: int, on_batch: Callable[[int], None]
    ) -> None:
        self._network, self._policy, self._on_batch = network, trained.images, on_batch
        self._max_pixels = min(max_pixels, MAX_PIXELS)
        self._size = trained.config.input.eval_size
        self._pixels = Pixels(trained, torch.device("cpu"), 1)
        self.threads = self._pixels.threads

    def prepare(self, upload: Upload) -> Input:
        """Check and decode an image; from any thread.

        Raises:
            RefusedError: no image, a damaged one, or one that is too large.
        """
        data = upload.image()
        if not data:
            raise RefusedError(422, "empty: no image was sent")
        try:
            width, height = size_of(data)
        except NotAnImageError as error:
            raise RefusedError(415, str(error)) from error
        except TooManyPixelsError as error:
            raise RefusedError(413, str(error)) from error
        except BadImageError as error:
            raise RefusedError(422, f"damaged image: {error}") from error
        if width * height > self._max_pixels:
            raise RefusedError(413, f"{width} x {height} pixels, more than {self._max_pixels:,}")
        image = load_image(Given("", data), self._policy)
        if isinstance(image, Bad):
            raise RefusedError(422, f"damaged image: {image.reason}")
        decoded = self._pixels([image])
        if decoded.bad:
            raise RefusedError(422, f"damaged image: {decoded.bad[0]}")
        return Input(decoded.images[0], upload.top, is_sideways(image, self._policy))

    def run(self, batch: Sequence[Input]) -> list[Answer]:
        """Answers of a batch; from one thread."""
        images = torch.stack([one.pixels for one in batch]).to(self._network.device)
        probabilities, labels = self._network.likeliest(images, max(one.top for one in batch))
        self._on_batch(len(batch))
        rows = zip(batch, labels.tolist(), probabilities.tolist(), strict=True)
        return [Answer(best[: one.top], shares[: one.top], one.sideways) for one, best, shares in rows]

    def warm(self, max_batch: int) -> None:
        """Run the smallest and the largest batch, so that what takes its time or memory at first does so now.

        Raises:
            FeedlineError: the device has not as much memory.
        """
        shape, device = (self._size, self._size, 3), self._network.device
        try:
            for size in (1, max_batch):
                black = torch.zeros(size, *shape, dtype=torch.uint8, device=device)
                self._network.logits(black).cpu()
        except RuntimeError as error:
            # Of a CPU's memory torch says so in its text alone.
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise FeedlineError(
                f"a batch of {max_batch} does not fit into the memory of {device}; give a smaller --max-batch"
            ) from error

    def close(self) -> None:
        """End the decoder's threads."""
        self._pixels.__exit__(None, None, None)
