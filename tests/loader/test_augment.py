"""Crop windows as torchvision defines them, as a function of the sample id."""

import numpy as np
import pytest
import torchvision.transforms.v2.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loader import PadCrop, RandomResizedCrop, ResizeCenterCrop
from shard.errors import FeedlineError

SIDES = st.integers(1, 3000)
PIXELS = st.integers(1, 160)


def sides(n: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(n, width, np.int32), np.full(n, height, np.int32)


@given(width=SIDES, height=SIDES, seed=st.integers(0, 1000), epoch=st.integers(0, 300))
def test_windows_lie_inside_the_image(width: int, height: int, seed: int, epoch: int) -> None:
    params = RandomResizedCrop().params(seed, epoch, np.arange(50), *sides(50, width, height))
    top, left, h, w = params.window.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h > 0).all()
    assert (w > 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


@given(order=st.permutations(list(range(12))), epoch=st.integers(0, 50))
def test_parameters_belong_to_the_sample_not_to_its_place(order: list[int], epoch: int) -> None:
    rng = np.random.default_rng(0)
    width, height = rng.integers(20, 900, (2, 12), dtype=np.int32)
    ids = np.arange(12)
    for transform in (RandomResizedCrop(), PadCrop()):
        straight = transform.params(9, epoch, ids, width, height)
        shuffled = transform.params(9, epoch, ids[order], width[order], height[order])
        for name in ("window", "resized", "offset", "flip"):
            assert np.array_equal(getattr(straight, name)[order], getattr(shuffled, name))


def test_parameters_change_with_the_epoch() -> None:
    size = sides(100, 500, 375)
    first, second = (RandomResizedCrop().params(0, epoch, np.arange(100), *size) for epoch in (0, 1))
    assert (first.window != second.window).any(axis=1).mean() > 0.95
    assert 0.3 < (first.flip != second.flip).mean() < 0.7


def test_crop_statistics_follow_scale_and_ratio() -> None:
    n = 20_000
    params = RandomResizedCrop(scale=(0.25, 0.6)).params(0, 0, np.arange(n), *sides(n, 800, 800))
    _, _, h, w = params.window.T.astype(float)
    share = h * w / 800**2
    assert share.min() == pytest.approx(0.25, abs=0.01)
    assert share.max() == pytest.approx(0.6, abs=0.01)
    assert share.mean() == pytest.approx(0.425, abs=0.005)
    assert np.log(w / h).mean() == pytest.approx(0, abs=0.005)
    assert (w / h).min() > 0.74
    assert (w / h).max() < 1.35
    assert params.flip.mean() == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize(
    ("width", "height", "window"), [(1000, 12, [0, 492, 12, 16]), (12, 1000, [492, 0, 16, 12])]
)
def test_extreme_shapes_fall_back_to_the_largest_centre_window(
    width: int, height: int, window: list[int]
) -> None:
    """At least half the area of such an image never has a ratio within 3/4 … 4/3."""
    params = RandomResizedCrop(scale=(0.5, 1.0)).params(0, 0, np.arange(3), *sides(3, width, height))
    assert params.window.tolist() == [window] * 3


@given(width=PIXELS, height=PIXELS, size=PIXELS, resize=PIXELS)
def test_evaluation_geometry_is_torchvisions(width: int, height: int, size: int, resize: int) -> None:
    """Coordinates as pixel values: what torchvision leaves at each corner tells size and offset."""
    params = ResizeCenterCrop(size=size, resize=resize).params(0, 0, [0], *sides(1, width, height))
    new_height, new_width = TF.resize(Image.new("L", (width, height)), [resize]).size[::-1]
    assert params.resized.tolist() == [[new_height, new_width]]
    marked = np.arange(1, new_height * new_width + 1).reshape(new_height, new_width) % 251 + 1
    cropped = np.asarray(TF.center_crop(Image.fromarray(marked.astype(np.uint8)), [size, size]))
    top, left = params.offset[0].tolist()
    mine = np.zeros((size, size), np.uint8)
    for y in (0, size // 2, size - 1):
        for x in (0, size // 2, size - 1):
            if 0 <= y + top < new_height and 0 <= x + left < new_width:
                mine[y, x] = marked[y + top, x + left]
            assert mine[y, x] == cropped[y, x]


def test_pad_crop_shifts_cover_the_whole_range() -> None:
    params = PadCrop(size=32, pad=4).params(0, 0, np.arange(5000), *sides(5000, 32, 32))
    assert np.unique(params.offset).tolist() == list(range(-4, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop(scale=(0.0, 1.0)), "scale is"),
        (lambda: RandomResizedCrop(ratio=(2.0, 1.0)), "ratio is"),
        (lambda: RandomResizedCrop(hflip=1.5), "hflip is 1.5"),
        (lambda: ResizeCenterCrop(size=0), "size is 0"),
        (lambda: PadCrop(size=8, pad=8), "pad is 8"),
    ],
)
def test_impossible_settings_are_refused(make: object, message: str) -> None:
    with pytest.raises(FeedlineError, match=message):
        make()  # type: ignore[operator]
