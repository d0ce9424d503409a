"""Decoding a window gives the pixels that decoding the whole image gives there."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import loader.jpeg
from loader.jpeg import Decoder

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0", "grey")


def encode(subsampling: str, *, progressive: bool = False) -> np.ndarray:
    """A noisy picture of 97 × 83 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (83, 97, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert("L" if subsampling == "grey" else "RGB")
    file = io.BytesIO()
    options = {} if subsampling == "grey" else {"subsampling": subsampling}
    picture.save(file, "JPEG", quality=80, progressive=progressive, **options)
    return np.frombuffer(file.getvalue(), np.uint8)


ENCODED = {(s, p): encode(s, progressive=p) for s in SUBSAMPLINGS for p in (False, True)}


@given(key=st.sampled_from(sorted(ENCODED)), data=st.data())
def test_a_window_is_that_of_the_whole_image(key: tuple[str, bool], data: st.DataObject) -> None:
    encoded = ENCODED[key]
    top, left = data.draw(st.integers(0, 82)), data.draw(st.integers(0, 96))
    height, width = data.draw(st.integers(1, 83 - top)), data.draw(st.integers(1, 97 - left))
    whole = simplejpeg.decode_jpeg(encoded, "RGB")
    window = Decoder().window(encoded, top, left, height, width)
    assert np.array_equal(window, whole[top : top + height, left : left + width])


def damaged(seed: int) -> np.ndarray:
    """A JPEG with a few bytes overwritten, or cut short."""
    rng = np.random.default_rng(seed)
    encoded = ENCODED[sorted(ENCODED)[seed % len(ENCODED)]].copy()
    if seed % 3 == 0:
        return encoded[: rng.integers(1, len(encoded))]
    where = rng.integers(0, len(encoded), 3)
    encoded[where] = rng.integers(0, 256, 3)
    return encoded


def window(decoder: Decoder, encoded: np.ndarray) -> np.ndarray | None:
    try:
        return decoder.window(encoded, 3, 5, 40, 40).copy()
    except ValueError:
        return None


def test_damaged_images_are_what_they_are_alone() -> None:
    """Whatever a decoder met before, an image gives the same pixels or the same verdict; Pillow's, if that has one."""
    used, verdicts = Decoder(), []
    for seed in range(300):
        encoded = damaged(seed)
        found, alone = window(used, encoded), window(Decoder(), encoded)
        verdicts.append(found is None)
        assert (found is None) == (alone is None)
        assert found is None or np.array_equal(found, alone)
        try:
            with Image.open(io.BytesIO(encoded.tobytes())) as picture:
                whole = np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError):
            continue  # damage below the window is Pillow's concern alone
        if whole.shape[0] >= 43 and whole.shape[1] >= 45:
            assert found is not None
            assert np.array_equal(found, whole[3:43, 5:45])
    assert 30 < sum(verdicts) < 270


@pytest.mark.parametrize("without", [False, True])
def test_errors_and_the_way_without_the_library(without: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if without:
        monkeypatch.setattr(loader.jpeg, "_library", lambda: None)
    decoder, encoded = Decoder(), ENCODED["4:2:0", False]
    whole = simplejpeg.decode_jpeg(encoded, "RGB")
    assert np.array_equal(decoder.window(encoded, 5, 30, 40, 50), whole[5:45, 30:80])
    with pytest.raises(ValueError, match=r".+"):
        decoder.window(np.frombuffer(b"no JPEG at all, but long enough to be one", np.uint8), 0, 0, 8, 8)
    with pytest.raises(ValueError, match=r"97 × 83 pixels"):
        decoder.window(encoded, 0, 60, 40, 50)
    assert np.array_equal(decoder.window(encoded, 5, 30, 40, 50), whole[5:45, 30:80])
