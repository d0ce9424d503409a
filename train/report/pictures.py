"""The images of a dataset that a report shows: small JPEGs as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from shard.dataset import Dataset, read_image
from shard.errors import FeedlineError

_SIDE = 192  # pixels, the longer one: shown at half of it, sharp on good screens
_QUALITY = 80


def thumbnails(dataset: Dataset, split: str, fingerprint: str, ids: Sequence[int]) -> list[str]:
    """A data URI of each sample.

    Args:
        dataset: where they are.
        split: of it.
        fingerprint: of the dataset that they were judged in: in another the ids mean other images.
        ids: of the samples.

    Raises:
        FeedlineError: it is another dataset, or an image cannot be read.
    """
    if dataset.fingerprint != fingerprint:
        raise FeedlineError(f"{dataset.root} is not what it was: its samples are others than those judged")
    rows = dataset.split(split)
    try:
        return [_data_uri(read_image(rows, i)) for i in ids]
    except OSError as error:  # Pillow's
        raise FeedlineError(
            f"an image in split {split!r} of {dataset.root} cannot be read: {error}"
        ) from error


def _data_uri(encoded: bytes) -> str:
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (_SIDE, _SIDE))
        small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
