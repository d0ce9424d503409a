"""Images whose shorter side, resized, would make the other one gigabytes long."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loader import ColorJitter, Compose, Params, RandomResizedCrop, ResizeCenterCrop, Transform
from loader.backend import Backend
from loader.jpeg import Decoder
from loader.narrow import MOST_PIXELS, cut, too_long
from loader.torch_backend import TorchBackend
from loader.tune import Found

CPU = torch.device("cpu")
THIN = [(1, 65_000), (65_000, 1), (2, 30_000), (30_000, 2)]
SIDES = st.integers(1, 65_500)


@pytest.fixture(params=["torch", "dali", pytest.param("gpu", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made: Backend
    if request.param == "torch":
        made = TorchBackend(CPU, 1)
    else:
        from loader.dali_backend import DaliBackend

        device = torch.device("cuda", 0) if request.param == "gpu" else CPU
        # No share for the GPU's decoding engine, which rounds otherwise: equal images have equal pixels here.
        made = DaliBackend(device, 1, 4, None, Found(0.0))
    yield made
    made.close()


def jpeg(width: int, height: int) -> np.ndarray:
    """Smooth along its longer side, with an edge near the middle of it."""
    along = np.arange(max(width, height))
    colour = np.stack([128 + 100 * np.sin(along / period) for period in (3, 7, 11)], axis=1)
    colour[len(along) // 2 + 1 :] *= 0.5
    pixels = np.broadcast_to(colour[:, None] if height > width else colour[None], (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=95, subsampling=0)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def params_of(transform: Transform, *sizes: tuple[int, int]) -> Params:
    width, height = np.array(sizes, np.int32).T
    return transform.params(0, 0, np.arange(len(sizes)), width, height)


def whole(encoded: np.ndarray, params: Params, row: int, method: Image.Resampling) -> np.ndarray:
    """All of the image resized by Pillow, and cropped then."""
    with Image.open(io.BytesIO(encoded.tobytes())) as image:
        resized = image.resize(params.resized[row].tolist()[::-1], method)
    y, x = params.offset[row].tolist()
    return np.asarray(resized.crop((x, y, x + params.size, y + params.size))).astype(int)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [64, 80])  # the larger one is black at the edges of the shorter side
def test_equals_resizing_all_of_it(backend: Backend, interpolation: str, size: int) -> None:
    transform = ResizeCenterCrop(size=size, resize=72, interpolation=interpolation)
    sizes = [(2, 2001), (2001, 2), (3, 4001), (50, 30)]
    params = params_of(transform, *sizes)
    assert too_long(params).tolist() == [True, True, True, False]
    encoded = [jpeg(*one) for one in sizes]
    decoded = backend.submit(encoded, params, 4)()
    assert not decoded.bad
    for row, image in enumerate(encoded):
        expected = whole(image, params, row, Image.Resampling[interpolation.upper()])
        difference = np.abs(decoded.images[row].cpu().numpy().astype(int) - expected)
        # of the ordinary one the GPU's decoder rounds otherwise
        ordinary_on_gpu = row == 3 and decoded.images.is_cuda
        assert difference.max() <= 1 or row == 3
        assert difference.mean() <= (1 if ordinary_on_gpu else 0.25)


def test_the_operations_after_it_are_done(backend: Backend) -> None:
    """What both backends make of a crop does not depend on how it came about."""
    crop = ResizeCenterCrop(size=64, resize=72)
    sizes = [(2, 2001), (50, 30)]
    policy = Compose(crop, (ColorJitter(brightness=0.4),))
    plain, changed = (
        backend.submit([jpeg(*one) for one in sizes], params_of(t, *sizes), 2)().images.cpu().clone()
        for t in (crop, policy)
    )
    again = io.BytesIO()
    Image.fromarray(plain[0].numpy()).save(again, "PNG")
    square = params_of(policy, (64, 64), (50, 30))
    square.resized[0], square.offset[0] = 64, 0
    encoded = [np.frombuffer(again.getvalue(), np.uint8), jpeg(50, 30)]
    torch.testing.assert_close(backend.submit(encoded, square, 2)().images.cpu(), changed, rtol=0, atol=0)
    assert not torch.equal(plain[0], changed[0])


def test_a_broken_one_is_named_and_the_others_come(backend: Backend) -> None:
    sizes = [(50, 30), (1, 65_000), (1, 65_000), (40, 40)]
    good = [jpeg(*one) for one in sizes]
    params = params_of(ResizeCenterCrop(size=32, resize=72), *sizes)
    before = backend.submit(good, params, 4)().images.cpu().clone()
    broken = [good[0], np.frombuffer(b"\xff\xd8\xff no picture", np.uint8), good[2], good[3][:200]]
    decoded = backend.submit(broken, params, 4)()
    assert sorted(decoded.bad) == [1, 3]
    before[[1, 3]] = 0
    assert torch.equal(decoded.images.cpu(), before)


def test_only_a_few_pixels_are_asked_for(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    areas: list[int] = []
    window, interpolate = Decoder.window, F.interpolate

    def watched(self: Decoder, encoded: np.ndarray, *where: int) -> np.ndarray:
        areas.append(where[2] * where[3])
        return window(self, encoded, *where)

    def resized(images: torch.Tensor, size: list[int], **more: object) -> torch.Tensor:
        areas.append(size[0] * size[1])
        return interpolate(images, size=size, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "window", watched)
    monkeypatch.setattr(F, "interpolate", resized)
    encoded = [jpeg(*one) for one in THIN]
    for transform in (ResizeCenterCrop(), RandomResizedCrop()):
        params = params_of(transform, *THIN)
        decoded = backend.submit(encoded, params, 4)()
        assert not decoded.bad
        assert (decoded.images.flatten(1).amax(1) > 0).all()
    assert max(areas, default=0) <= 224 * 224


@given(width=SIDES, height=SIDES, resize=st.integers(1, 1024), part=st.floats(0.1, 1.5))
def test_memory_is_bounded(width: int, height: int, resize: int, part: float) -> None:
    """Of any image: either all of it resized has few pixels, or little of it is decoded."""
    params = params_of(ResizeCenterCrop(size=max(1, int(resize * part)), resize=resize), (width, height))
    if not too_long(params)[0]:
        assert params.resized[0].prod() <= MOST_PIXELS
        return

    def decode(top: int, left: int, height_: int, width_: int) -> np.ndarray:
        assert 0 <= top < top + height_ <= height
        assert 0 <= left < left + width_ <= width
        shorter = min(width, height)
        # as much of the longer side as of the shorter one is looked at, and what the filter reaches to
        assert max(width_, height_) <= 1.5 * shorter + 4 * max(1, shorter / resize) + 4
        return np.zeros((1, 1, 3), np.uint8).repeat(height_, 0).repeat(width_, 1)

    if min(width, height) <= 2000:  # of larger ones the decoder has as much to do without resizing
        assert cut(decode, params, 0).shape == (params.size, params.size, 3)
