"""Judge one image file's bytes: keep, mend or reject."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

# Pillow's own limit for a decompression bomb, here for every way to decode.
MAX_PIXELS = 178_956_970
_QUALITY = 95


class BadImageError(Exception):
    """The bytes are no image that can be decoded; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Checked:
    """An image that decodes.

    Attributes:
        data: a JPEG, the original bytes unless `repaired`.
        width: pixels.
        height: pixels.
        repaired: why the bytes were encoded anew, or None.
    """

    data: bytes
    width: int
    height: int
    repaired: str | None = None


def check(data: bytes) -> Checked:
    """Decode an image fully.

    An 8-bit grayscale or three-component JPEG that decodes is kept byte for byte. Whatever else Pillow
    decodes (PNG, WebP, CMYK, 16-bit, palette, alpha, animation …) becomes an RGB JPEG, quality 95, 4:4:4.

    Raises:
        BadImageError: empty, truncated, too large, or no image.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _check(data)
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise BadImageError(_reason(error)) from error


def _check(data: bytes) -> Checked:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadImageError(f"{width} x {height} pixels, more than {MAX_PIXELS}")
        # MPO is a JPEG with further pictures behind the first (some cameras)
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            if not _decodes_cleanly(data):
                image.load()  # decides what libjpeg only warned of: raises if truncated
                simplejpeg.decode_jpeg(data, "RGB", strict=False)  # what the loader will do
            return Checked(data, width, height)
        return _encode(image)


def _decodes_cleanly(data: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return False
    return True


def _encode(image: ImageFile.ImageFile) -> Checked:
    reason = f"{image.format}, mode {image.mode}, to JPEG"
    picture: Image.Image = image
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip 16 bits at 255
        picture = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return Checked(buffer.getvalue(), image.width, image.height, reason)


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__
