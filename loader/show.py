"""`python -m loader show`: a contact sheet of what a model will really see."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from loader.augment import ResizeCenterCrop
from loader.fonts import font_for
from loader.keyed import Stream, uniform
from loader.params import Transform
from loader.replay import replay
from shard.dataset import Dataset, Split
from shard.errors import FeedlineError
from shard.labels import numbers

# Packages that know recipes announce a function under this name: recipe → `Transform`, or a FeedlineError.
RECIPES = "feedline.transforms"

_GAP, _LINE, _FONT = 6, 18, 12  # pixels: between tiles, height of a caption, its letters
_LEAST_TILE = 96  # smaller images are enlarged by a whole number
_MOST_PIXELS = 200_000_000
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What stands on a contact sheet.

    Attributes:
        plain: uint8 [B, size, size, 3], the samples' middles without augmentation.
        images: uint8 [E, B, size, size, 3], the samples in E epochs.
        columns: captions of the E epochs.
        rows: captions of the B samples.
        title: one line about the whole.
        about: all that the images depend on.
        bad: reason by sample id, of samples that cannot be read or decoded.
        first: caption of the first column.
        tiles: captions of the images, [B][E]; (): rows have captions only, as wide as the sheet.
    """

    plain: Pixels
    images: Pixels
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    title: str
    about: str
    bad: dict[int, str]
    first: str = "plain"
    tiles: tuple[tuple[str, ...], ...] = ()

    @property
    def scale(self) -> int:
        """How many times a pixel is enlarged."""
        return -(-_LEAST_TILE // int(self.plain.shape[1]))

    @property
    def side(self) -> int:
        """Side of a tile on the sheet, pixels."""
        return self.scale * int(self.plain.shape[1])

    def place(self, row: int, column: int) -> tuple[int, int]:
        """Left and top of a tile on the sheet, pixels; column 0 is the plain view, column 1 the first epoch."""
        left = _GAP + column * (self.side + _GAP) + (_GAP if column else 0)
        return left, _GAP + 2 * _LINE + row * (_LINE + self.side + _GAP) + _LINE

    def picture(self) -> Image.Image:
        """Draw the sheet."""
        right, bottom = self.place(len(self.rows) - 1, len(self.columns))
        sheet = Image.new("RGB", (right + self.side + _GAP, bottom + self.side + _GAP), _PAPER)
        draw = ImageDraw.Draw(sheet)

        def write(left: int, top: int, text: str, most: int, color: tuple[int, int, int]) -> None:
            text = "".join(c if c.isprintable() else " " for c in text)  # Pillow measures no second line
            font = font_for(text, _FONT)
            draw.text((left, top + 2), _shortened(text, most, draw, font), color, font)

        write(_GAP, _GAP, self.title, sheet.width - 2 * _GAP, _INK)
        for column, name in enumerate((self.first, *self.columns)):
            write(self.place(0, column)[0], _GAP + _LINE, name, self.side, _FAINT)
        for row, name in enumerate(self.rows):
            left, top = self.place(row, 0)
            write(left, top - _LINE, name, self.side if self.tiles else sheet.width - left - _GAP, _INK)
            for column, caption in enumerate(self.tiles[row] if self.tiles else (), start=1):
                write(self.place(row, column)[0], top - _LINE, caption, self.side, _INK)
            for column, image in enumerate((self.plain[row], *self.images[:, row])):
                tile = Image.fromarray(image).resize((self.side, self.side), Image.Resampling.NEAREST)
                sheet.paste(tile, self.place(row, column))
        return sheet


def recipe_transform(name: str) -> Transform:
    """Training transform of a recipe, from any installed package that knows it.

    Raises:
        FeedlineError: nobody knows recipes, or this one.
    """
    known = sorted(importlib.metadata.entry_points(group=RECIPES), key=lambda entry: entry.name)
    if not known:
        raise FeedlineError(
            f"--recipe is {name!r}, but no installed package knows recipes (entry points {RECIPES!r}); install "
            "feedline with `pip install -e .`, or give --crop, --augment and --erase instead"
        )
    failures = []
    for entry in known:
        try:
            transform: Transform = entry.load()(name)
        except FeedlineError as error:  # noqa: PERF203  (a few of them)
            failures.append(str(error))
        else:
            return transform
    raise FeedlineError("; ".join(failures))


def spread(split: Split, count: int, seed: int) -> list[int]:
    """Sample ids from all over a split: it is cut into `count` equal parts, and of each comes one, chosen by `seed`."""
    count = min(count, len(split))
    within = uniform(seed, 0, np.arange(count), Stream.SHUFFLE)
    chosen: list[int] = np.floor((np.arange(count) + within) * len(split) / count).astype(int).tolist()
    return chosen


def make_sheet(
    dataset: Dataset,
    split: str,
    transform: Transform,
    ids: Sequence[int],
    epochs: Sequence[int],
    *,
    title: str = "",
    seed: int = 0,
    device: str | torch.device = "cpu",
    backend: str = "auto",
) -> Sheet:
    """Produce the images of a sheet, and their captions.

    Raises:
        FeedlineError: see `loader.replay.replay`; or the sheet would be enormous.
    """
    side = max(transform.size, _LEAST_TILE)
    if (pixels := side * side * len(ids) * (len(epochs) + 1)) > _MOST_PIXELS:
        raise FeedlineError(
            f"a sheet of {len(ids)} samples × {len(epochs)} epochs at {transform.size} px has {pixels:,} pixels, at "
            f"most {_MOST_PIXELS:,} are drawn; show fewer samples or epochs, or a smaller --size"
        )
    where: dict[str, Any] = {"seed": seed, "device": device, "backend": backend}
    plain = ResizeCenterCrop(size=transform.size, resize=transform.size)
    before = replay(dataset, split, plain, ids, **where)
    after = replay(dataset, split, transform, ids, epochs, **where)
    return Sheet(
        plain=before.images[0],
        images=after.images,
        columns=tuple(f"epoch {epoch}" for epoch in epochs),
        rows=tuple(_captions(dataset, dataset.split(split), ids)),
        title=title,
        about=f"{dataset.root}, split {split}, seed {seed}, samples {list(ids)}, epochs {list(epochs)}: {transform}",
        bad=before.bad | after.bad,
    )


def save(sheet: Sheet, path: Path) -> None:
    """Write the sheet as a PNG, with what its images depend on as its description.

    Raises:
        FeedlineError: the file has another suffix, or cannot be written.
    """
    about = PngInfo()
    about.add_itxt("Description", sheet.about)
    try:
        sheet.picture().save(path, format="PNG", pnginfo=about)
    except OSError as error:
        raise FeedlineError(f"cannot write the contact sheet {path}: {error.strerror or error}") from error


def _captions(dataset: Dataset, split: Split, ids: Sequence[int]) -> list[str]:
    readable = dataset.manifest.get("class_names") or [""] * len(dataset.classes)
    captions = []
    for i in ids:
        labels = numbers(split.label_of(i))
        names = (
            " · ".join(name for k in labels for name in (dataset.classes[k], readable[k]) if name)
            or "no class"
        )
        captions.append(f"id {i} · {names} · {int(split.width[i])} x {int(split.height[i])}")
    return captions


def _shortened(text: str, most: int, draw: ImageDraw.ImageDraw, font: Any) -> str:
    """The text, or as much of it as `most` pixels hold."""
    if draw.textlength(text, font) <= most:
        return text
    while text and draw.textlength(text + "…", font) > most:
        text = text[:-1]
    return text + "…"
