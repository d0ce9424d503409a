"""Image files from outside of a dataset, as a `Loader` would give them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from loader.backend import Decoded
from loader.params import Transform
from loader.reader import Encoded
from loader.torch_backend import TorchBackend
from shard.errors import FeedlineError

_ORIENTATION = 0x0112  # EXIF


def load_files(paths: Sequence[Path], transform: Transform) -> torch.Tensor:
    """Decode and transform image files, upright where a camera has noted how: uint8 [N, size, size, 3].

    Args:
        paths: JPEGs, or anything that Pillow reads.
        transform: what the `Loader` would have.

    Raises:
        FeedlineError: a file that is missing, or no image.
    """
    files = [_read(path) for path in paths]
    width, height = (np.array([size[i] for _, size in files], np.int32) for i in (0, 1))
    params = transform.params(0, 0, np.arange(len(files)), width, height)
    backend = TorchBackend(torch.device("cpu"), threads=1)
    try:
        found: Decoded = backend.submit([encoded for encoded, _ in files], params, len(files))()
    finally:
        backend.close()
    for row, reason in found.bad.items():
        raise FeedlineError(f"{paths[row]} does not decode: {reason}")
    return found.images


def _read(path: Path) -> tuple[Encoded, tuple[int, int]]:
    """Encoded bytes of a file, and its width and height."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if image.getexif().get(_ORIENTATION, 1) != 1:
                return _upright(image)
            return np.frombuffer(content, np.uint8), image.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise FeedlineError(f"cannot read the image {path}: {reason}") from error


def _upright(image: Image.Image) -> tuple[Encoded, tuple[int, int]]:
    turned = ImageOps.exif_transpose(image).convert("RGB")
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", compress_level=1)
    return np.frombuffer(buffer.getvalue(), np.uint8), turned.size
