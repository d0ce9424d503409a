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
