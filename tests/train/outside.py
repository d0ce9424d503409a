"""Images from outside, as predict and embed see them."""

from __future__ import annotations

from pathlib import Path

import torch

from shard.image import Checked
from train.predict import Pixels, load_image
from train.trained import Trained


def pixels_of(trained: Trained, *paths: Path) -> torch.Tensor:
    """What a run's network is given of image files: uint8 [N, size, size, 3]."""
    loaded = [load_image(str(path), trained.images) for path in paths]
    good = [one for one in loaded if isinstance(one, Checked)]
    assert len(good) == len(paths), loaded
    with Pixels(trained, torch.device("cpu"), len(paths)) as pixels:
        return pixels(good).images
