"""Deterministic images for benchmarks without ImageNet: its sizes and compressed bytes, with learnable classes.

An image is a striped pattern, whose direction, number of stripes and two colours belong to its class, under
grey noise that makes it as hard to compress as a photograph. Phase, contrast and noise belong to the image.
All follow from (seed, number) through Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), whose raw output is the same everywhere.

The tables below are measured on 500 images of ImageNet-1k's training split, one of each of 500 classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg

from shard.errors import FeedlineError
from shard.items import Item, Listing, table
from shard.labels import numbers as labels_of
from shard.sources import Source

Floats = npt.NDArray[np.float64]

# width, height, and how many of the 500 had it
_COMMON = np.array(
    [
        *((500, 375, 104), (500, 333, 49), (375, 500, 32), (333, 500, 18), (500, 334, 12), (500, 332, 11)),
        *((500, 335, 6), (640, 480, 6), (600, 450, 6), (400, 300, 6), (334, 500, 5), (500, 500, 5)),
        *((500, 376, 3), (800, 600, 3)),
    ]
)
_COMMON_SHARE = 266 / 500
_AT = np.array([0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]) / 100
# Quantiles: of the other sizes, area (thousand pixels) and width / height; of both kinds, bits per pixel.
_AREA = [10, 30.8, 47, 84.8, 140.3, 162.5, 173.8, 185.5, 197.1, 220.7, 335.3, 476.7, 2528.2]
_RATIO = [0.467, 0.681, 0.734, 0.812, 1, 1.179, 1.287, 1.333, 1.395, 1.471, 1.514, 1.636, 3.425]
_COMMON_BITS = [0.79, 1.6, 2.15, 3.54, 4.38, 4.86, 5.5, 6.08, 6.55, 7.18, 8.05, 8.9, 10.2]
_OTHER_BITS = [0.74, 1.08, 1.18, 1.75, 2.2, 2.74, 3.5, 4.1, 4.84, 5.86, 7.25, 7.9, 9.97]
# Bits per pixel of the pattern under uniform noise of some amplitude (1 = full range), JPEG quality 95, 4:2:0.
_QUALITY = 95
_NOISE = [0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.3, 1.7, 2.2]
_NOISE_BITS = [
    *(0.74, 1.19, 1.72, 2.23, 2.63, 3.21, 3.63, 3.95, 4.55, 5.01, 5.75, 6.33, 7.27, 7.97, 8.58),
    *(9.47, 9.97, 10.2),
]


@dataclass(frozen=True, slots=True)
class SynthReader:
    """Makes images instead of reading them.

    Attributes:
        seed: of everything.
        size: side in pixels of all images; None: ImageNet's sizes.
    """

    seed: int
    size: int | None = None

    def read(self, item: Item) -> bytes:
        """Give the JPEG of `item`, whose `offset` is the image's number."""
        width, height, bits = (float(v[0]) for v in shapes(self.seed, np.array([item.offset]), self.size))
        return render(self.seed, item.offset, labels_of(item.label)[0], int(width), int(height), bits)


def shapes(seed: int, numbers: npt.NDArray[np.int64], size: int | None) -> tuple[Floats, Floats, Floats]:
    """Width and height in pixels and JPEG bits per pixel of images: three arrays [N]."""
    kind, place, ratio, bits = _uniform(seed, numbers)
    common = kind < _COMMON_SHARE
    shares = np.cumsum(_COMMON[:, 2]) / _COMMON[:, 2].sum()
    usual = _COMMON[np.minimum(np.searchsorted(shares, place, side="right"), len(_COMMON) - 1)]
    area = np.exp(np.interp(place, _AT, np.log(_AREA))) * 1000
    ratio = np.interp(ratio, _AT, _RATIO)
    width = np.where(common, usual[:, 0], np.rint(np.sqrt(area * ratio)))
    height = np.where(common, usual[:, 1], np.rint(np.sqrt(area / ratio)))
    if size is not None:
        width = height = np.full(len(numbers), float(size))
    return (
        width,
        height,
        np.where(common, np.interp(bits, _AT, _COMMON_BITS), np.interp(bits, _AT, _OTHER_BITS)),
    )


def render(seed: int, number: int, label: int, width: int, height: int, bits: float) -> bytes:
    """JPEG of one image: `width` x `height` pixels at about `bits` per pixel."""
    look = np.random.Philox(key=label).random_raw(8).astype(np.float64) / 2.0**64  # of the class
    noise_key = (seed << 64) + number
    generator = np.random.Philox(key=noise_key)
    phase, contrast = generator.random_raw(2).astype(np.float64) / 2.0**64
    angle, stripes = np.pi * look[0], 2 + 6 * look[1]
    x = np.linspace(0, stripes * np.cos(angle), width, dtype=np.float32)
    y = np.linspace(0, stripes * np.sin(angle), height, dtype=np.float32)
    wave = np.sin(2 * np.pi * (x[None, :] + y[:, None] + np.float32(phase)), dtype=np.float32)
    noise = (
        generator.random_raw(-(-width * height // 8)).view(np.uint8)[: width * height].reshape(height, width)
    )
    amplitude = np.float32(np.interp(bits, _NOISE_BITS, _NOISE))
    gray = (noise.astype(np.float32) - 127.5) * amplitude
    colors = (40 + 180 * look[2:8]).astype(np.float32).reshape(2, 3)
    middle, swing = colors.mean(axis=0), (colors[0] - colors[1]) / 2 * np.float32(0.6 + 0.4 * contrast)
    pixels = np.empty((height, width, 3), np.uint8)
    for channel in range(3):
        plane = wave * swing[channel] + (gray + middle[channel])
        pixels[..., channel] = np.clip(plane, 0, 255, out=plane)
    data: bytes = simplejpeg.encode_jpeg(pixels, quality=_QUALITY, colorsubsampling="420")
    return data


def _uniform(seed: int, numbers: npt.NDArray[np.int64]) -> Floats:
    """Four numbers in 0 … 1 for each image: [4, N], from a hash of (seed, number)."""
    key = (np.uint64(seed % 2**64) << np.uint64(1)) ^ np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):  # wrapping is the point: SplitMix64's finaliser
        words = numbers.astype(np.uint64) * np.uint64(4) + np.arange(4, dtype=np.uint64)[:, None] + key
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (words ^ (words >> np.uint64(31))).astype(np.float64) / 2.0**64


def synthetic(
    samples: int, classes: int, *, val_samples: int = 0, seed: int = 0, size: int | None = None
) -> Source:
    """Make a source of synthetic images, for `shard.build.build`.

    Args:
        samples: in split "train".
        classes: image i is of class i % classes.
        val_samples: in split "val"; 0: no such split.
        seed: of the images.
        size: side in pixels of all images; None: ImageNet's sizes.

    Raises:
        FeedlineError: a number is out of range.
    """
    for name, value, least in (
        ("samples", samples, classes),
        ("classes", classes, 1),
        ("size", size or 8, 8),
    ):
        if value < least:
            raise FeedlineError(f"{name} is {value}; it must be at least {least}")
    if val_samples and val_samples < classes:
        raise FeedlineError(
            f"val_samples is {val_samples}; it must be 0 or at least {classes}, one of each class"
        )
    names = tuple(f"class-{i:05d}" for i in range(classes))
    listing = Listing(kind="synth", classes=names, splits={}, reader=SynthReader(seed, size))
    first = 0
    for split, count in (("train", samples), ("val", val_samples)):
        if count:
            numbers = np.arange(first, first + count)
            labels = np.arange(count) % classes
            width, height, bits = shapes(seed, numbers, size)
            listing.splits[split] = table(
                [
                    f"{split}/{names[label]}/{number:08d}.jpg".encode()
                    for number, label in zip(numbers.tolist(), labels.tolist(), strict=True)
                ],
                labels,
                (width * height * bits / 8).astype(np.int64) + 600,
                offsets=numbers,
            )
            first += count
    return Source(root=f"synth://{samples}", kind="synth", classes=None, splits=None, listed=listing)
