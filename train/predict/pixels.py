"""From checked images to a network's input: the loader's decoder and the run's evaluation transform."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import numpy as np
import torch

from loader.backend import Decoded
from loader.resolve import make_backend, resolve_backend, usable_cores
from shard.image import Checked
from train.trained import Trained


class Pixels:
    """Decodes images, in batches of a fixed shape. A context manager.

    Args:
        trained: the run.
        device: where the pixels are wanted.
        batch_size: rows of every batch; those that are not needed are black.
    """

    def __init__(self, trained: Trained, device: torch.device, batch_size: int) -> None:
        given = trained.config.input
        self.batch_size, self.threads = batch_size, given.loader_threads or usable_cores()
        self._transform = given.eval_transform()
        name = resolve_backend(given.loader_backend, device)
        self._backend = make_backend(name, device, self.threads, batch_size)

    def __call__(self, images: Sequence[Checked]) -> Decoded:
        """Decode at most `batch_size` images: uint8 [batch_size, size, size, 3], and reasons where one does not."""
        width = np.array([image.width for image in images], np.int32)
        height = np.array([image.height for image in images], np.int32)
        params = self._transform.params(0, 0, np.arange(len(images)), width, height)
        encoded = [np.frombuffer(image.data, np.uint8) for image in images]
        return self._backend.submit(encoded, params, self.batch_size)()

    def __enter__(self) -> Pixels:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the decoder."""
        self._backend.close()
