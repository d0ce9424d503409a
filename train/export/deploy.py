"""Write a run's network in a format, and let it have its name only if it computes what the run computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from loader.replay import replay
from loader.show import spread
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.export.about import describe
from train.export.formats import FORMATS, Predict
from train.export.timm_folder import not_exported
from train.trained import Trained
from train.whole import whole

TOLERANCE = 1e-4  # of a logit, or of the largest of them where that is more than 1
BATCH_SIZES = (1, 7)
SAMPLES = 100


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: the file or folder.
        size_bytes: of it.
        difference: largest difference between its logits and the run's.
        images: how many were compared, in batches of each of `BATCH_SIZES`.
        about: what it says of itself; see `describe`.
    """

    path: Path
    size_bytes: int
    difference: float
    images: int
    about: dict[str, str]


def export(
    trained: Trained,
    kind: str,
    out: Path | None = None,
    dataset: Dataset | None = None,
    *,
    samples: int = SAMPLES,
) -> Exported:
    """Write the network as `kind`, compared with the run before it gets its name.

    Args:
        trained: the run; its network is on the CPU.
        kind: one of `FORMATS`.
        out: file or, for timm, folder; None: in RUN/export.
        dataset: where the images come from that are compared, and readable class names; None: noise is compared.
        samples: how many images.

    Raises:
        FeedlineError: the network cannot be written in this format, or what was written computes something else.
    """
    form = FORMATS[kind]
    form.check(trained)
    path = out or trained.root / "export" / form.name
    if path.is_dir() != (kind == "timm") and path.exists():
        raise FeedlineError(
            f"--out is {path}, which is a {'folder' if path.is_dir() else 'file'}; give another name"
        )
    if path.is_dir() and (others := not_exported(path)):
        names = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise FeedlineError(f"--out is {path}, a folder with other things in it ({names}); give a new name")
    # safetensors takes no other order, and a file has no use for it.
    trained = replace(trained, net=trained.net.to(memory_format=torch.contiguous_format))
    about = describe(trained, dataset)
    images = sample_images(trained, dataset, samples)
    with whole(path) as aside:
        form.write(trained, about, aside)
        difference = compare(trained, form.read(trained, aside), images, path.name)
    return Exported(path, _size(path), difference, len(images), about)


def sample_images(trained: Trained, dataset: Dataset | None, count: int) -> torch.Tensor:
    """Images to compare on: from all over the evaluation split, as in evaluation; else noise. uint8 [N, H, W, 3].

    Raises:
        FeedlineError: the dataset has no such split, or images that cannot be decoded.
    """
    config = trained.config.input
    if dataset is None:
        rng = np.random.default_rng(0)
        shape = (count, config.eval_size, config.eval_size, 3)
        return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    if config.eval_split not in dataset.split_names:
        raise FeedlineError(
            f"{dataset.root} has no split {config.eval_split!r}, on whose images the run is compared; give another "
            "--data, or --synthetic"
        )
    ids = spread(dataset.split(config.eval_split), count, seed=0)
    found = replay(dataset, config.eval_split, config.eval_transform(), ids)
    if found.bad:
        sample, reason = next(iter(found.bad.items()))
        raise FeedlineError(
            f"sample {sample} of {config.eval_split!r} in {dataset.root} does not decode ({reason}); run `python -m "
            "shard verify --decode`"
        )
    return torch.from_numpy(found.images[0])


@torch.no_grad()
def compare(trained: Trained, predict: Predict, images: torch.Tensor, name: str) -> float:
    """Largest difference of logits from the run's, over all images in batches of each of `BATCH_SIZES`.

    Raises:
        FeedlineError: it is more than `TOLERANCE` allows.
    """
    expected = torch.cat([trained.net(part) for part in _batches(images, max(BATCH_SIZES))])
    bound = TOLERANCE * max(1.0, float(expected.abs().max()))
    worst = 0.0
    for size in BATCH_SIZES:
        found = torch.cat([predict(part) for part in _batches(images, size)])
        difference = float((found - expected).abs().max())
        if not difference <= bound:  # NaN is no agreement either
            raise FeedlineError(
                f"{name} was not written: in batches of {size} its logits differ from the run's by {difference:.2g}, "
                f"more than {bound:.2g}; try another --format"
            )
        worst = max(worst, difference)
    return worst


def _batches(images: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [images[first : first + size] for first in range(0, len(images), size)]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else (path,)))
