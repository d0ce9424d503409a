"""Does a peer really do the work? Probe images tell: from a crop of one can be read which part of it was cut out.

In a probe red grows from left to right, green from top to bottom, and blue is a checkerboard of single pixels, which
an antialiased reduction turns grey. The label is the number of the image. Position, size and flip of the window follow
from a line through red and one through green; whether every image came once, from the labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.dlpack import from_dlpack

from bench.peers.base import MEAN, STD, Peer
from shard.build import build
from shard.plan import Settings

Floats = npt.NDArray[np.float64]

PROBES, BATCH = 272, 32  # eight and a half batches
_LOW, _HIGH = 64, 192  # of the checkerboard
_ERRORS = 4.5  # standard errors of a mean within which a peer does the same as torchvision's definition
_SPREAD = 0.6  # least standard deviation, as a share of the expected one
_CONTRAST = 0.25  # of the checkerboard, above which it was not removed: 0.10 to 0.15 with any antialiasing
_EPOCHS = 20  # over which the expected windows are drawn
_NAMES = ("area", "log_aspect", "left", "top")


def make_probes(folder: Path, size: int, count: int = PROBES) -> Path:
    """Build a dataset of probes for crops of `size` pixels, in split "train" of the folder that is returned."""
    rng = np.random.default_rng(0)
    for i in range(count):
        width, height = rng.integers(int(1.7 * size), int(2.5 * size), 2).tolist()
        y, x = np.mgrid[:height, :width]
        board = np.where((x + y) % 2, _LOW, _HIGH)
        pixels = np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, board], axis=2)
        path = folder / "images" / "train" / f"{i:06d}" / "probe.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=98, subsampling=0)
    total = sum(path.stat().st_size for path in (folder / "images").rglob("*.jpg"))
    build(folder / "images", folder / "probes", Settings(shard_bytes=max(total // 16, 1)), workers=1)
    return folder / "probes"


def examine(peer: Peer) -> dict[str, Any]:
    """Run two epochs of a peer on probes.

    Returns:
        shape and dtype of a batch; images and distinct images of an epoch, out of how many; means and standard
        deviations of the windows' share of the area, log aspect ratio and position, share of flips; `repeated`, the
        share of images with the same window in both epochs; `contrast`, what is left of the checkerboard, 0 … 1.
    """
    first, second = _epoch(peer.epoch()), _epoch(peer.epoch())
    sizes = np.stack([peer.split.width, peer.split.height], axis=1)[np.argsort(peer.split.label)]
    windows, flips = read_windows(first["pixels"])
    again, _ = read_windows(second["pixels"])
    both, here, there = np.intersect1d(first["labels"], second["labels"], return_indices=True)
    same = np.abs(windows[here] - again[there]).max(axis=1) < 0.01
    measured = _figures(windows, sizes[first["labels"]])
    expected = _expected(peer)
    return {
        "shape": first["shape"],
        "dtype": first["dtype"],
        "images": len(first["labels"]),
        "distinct": len(np.unique(first["labels"])),
        "samples": len(peer.split),
        "size": peer.job.crop.size,
        "batch_size": peer.job.batch_size,
        "flips": round(float(flips.mean()), 3),
        "repeated": round(float(same.mean()), 3) if len(both) else None,
        "contrast": round(float(first["pixels"][..., 2].std(axis=(1, 2)).mean() / ((_HIGH - _LOW) / 2)), 3),
        "expected": {"flips": peer.job.crop.hflip, **{name: expected[name] for name in _NAMES}},
        **measured,
    }


def read_windows(pixels: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Window (left, top, width, height, as shares of the image) [N, 4] and flip [N] from crops [N, H, W, 3]."""
    side = pixels.shape[1]
    inner = slice(side // 8, side - side // 8)  # the border depends on how a filter treats it
    at = (np.arange(side) + 0.5)[inner] / side
    across = np.polynomial.polynomial.polyfit(at, pixels[:, inner, inner, 0].mean(axis=1).T / 255, 1)
    down = np.polynomial.polynomial.polyfit(at, pixels[:, inner, inner, 1].mean(axis=2).T / 255, 1)
    flip = across[1] < 0
    left = np.where(flip, across[0] + across[1], across[0])
    return np.stack([left, down[0], np.abs(across[1]), down[1]], axis=1), flip


def differences(found: dict[str, Any]) -> list[str]:
    """In what a peer does other or less work than it should; empty if in nothing."""
    notes, expected = [], found["expected"]
    full = found["samples"] // found["batch_size"] * found["batch_size"]
    if found["distinct"] < full:
        notes.append(f"{found['distinct']} of {found['samples']} images in an epoch")
    if found["images"] > found["distinct"]:
        notes.append(f"{found['images'] - found['distinct']} images twice in an epoch")
    if sorted(found["shape"][1:]) != sorted([3, found["size"], found["size"]]):
        notes.append(f"batches of shape {found['shape']}")
    if (found["repeated"] or 0) > 0.05:
        notes.append(f"the same window in every epoch for {found['repeated']:.0%} of the images")
    error = _ERRORS / np.sqrt(found["images"])
    share = expected["flips"]
    if abs(found["flips"] - share) > error * np.sqrt(share * (1 - share)):
        notes.append(f"flips {found['flips']:.0%} instead of {share:.0%}")
    for name in _NAMES:
        (mean, spread), (should, usual) = found[name], expected[name]
        if abs(mean - should) > error * usual or spread < _SPREAD * usual:
            words = name.replace("_", " ")
            notes.append(
                f"{words} of the window {mean:.2f} ± {spread:.2f} instead of {should:.2f} ± {usual:.2f}"
            )
    return notes


def antialiased(found: dict[str, Any]) -> bool:
    """Whether a peer's resize removes what is too fine for the output."""
    return bool(found["contrast"] < _CONTRAST)


def texture(peer: Peer, images: int) -> dict[str, float]:
    """Mean, standard deviation and detail (mean size of the Laplacian) of at least so many crops, in grey levels."""
    sums, count, seen = np.zeros(3), 0, 0
    while seen < images:
        seen += peer.step()[0]
        pixels = as_pixels(peer.images)
        centre, sides = pixels[:, 1:-1, 1:-1], pixels[:, :-2, 1:-1] + pixels[:, 2:, 1:-1]
        detail = np.abs(4 * centre - sides - pixels[:, 1:-1, :-2] - pixels[:, 1:-1, 2:]).mean()
        sums += np.array([pixels.mean(), pixels.std(), detail]) * len(pixels)
        count += len(pixels)
    return dict(zip(("mean", "std", "detail"), (sums / count).round(2).tolist(), strict=True))


def as_pixels(images: Any) -> Floats:
    """Give a batch of any peer as float [B, H, W, 3] in 0 … 255."""
    pixels = as_tensor(images).cpu()
    if pixels.shape[-1] != 3:
        pixels = pixels.permute(0, 2, 3, 1)
    if pixels.dtype.is_floating_point:
        pixels = (pixels * torch.tensor(STD) + torch.tensor(MEAN)) * 255
    result: Floats = pixels.double().numpy()
    return result


def as_tensor(images: Any) -> torch.Tensor:
    """Give a batch of any peer as a tensor, in its own layout; DALI's is a tensor list."""
    tensor: torch.Tensor = from_dlpack(images.as_tensor()) if hasattr(images, "as_tensor") else images
    return tensor


def _epoch(batches: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    pixels: list[npt.NDArray[np.float32]] = []
    labels: list[npt.NDArray[np.int64]] = []
    shape, dtype = [0], ""
    for images, numbers in batches:
        if not pixels:
            whole = as_tensor(images)
            shape, dtype = list(whole.shape), str(whole.dtype).removeprefix("torch.")
        pixels.append(as_pixels(images).astype(np.float32))
        labels.append(torch.as_tensor(numbers).cpu().numpy().astype(np.int64))
    return {
        "pixels": np.concatenate(pixels),
        "labels": np.concatenate(labels),
        "shape": shape,
        "dtype": dtype,
    }


def _expected(peer: Peer) -> dict[str, list[float]]:
    """Figures of torchvision's definition of the crop, which `RandomResizedCrop.params` is, for the same images."""
    split = peer.split
    ids = np.arange(len(split))
    drawn = [peer.job.crop.params(0, i, ids, split.width, split.height).window for i in range(_EPOCHS)]
    sizes = np.tile(np.stack([split.width, split.height], axis=1), (_EPOCHS, 1)).astype(float)
    top, left, height, width = np.concatenate(drawn).astype(float).T
    wide, high = sizes.T
    return _figures(np.stack([left / wide, top / high, width / wide, height / high], axis=1), sizes)


def _figures(windows: Floats, sizes: npt.NDArray[Any]) -> dict[str, list[float]]:
    """Mean and standard deviation of share of the area, log aspect ratio, and place within the room."""
    left, top, width, height = windows.T
    values = {
        "area": width * height,
        "log_aspect": np.log(width * sizes[:, 0] / (height * sizes[:, 1])),
        "left": _place(left, width),
        "top": _place(top, height),
    }
    return {name: [round(float(v.mean()), 3), round(float(v.std()), 3)] for name, v in values.items()}


def _place(start: Floats, extent: Floats) -> Floats:
    """Position within the room that a window has, 0 … 1; windows that fill the image have none."""
    room = 1 - extent
    return (start / np.where(room > 0.05, room, 1))[room > 0.05]
