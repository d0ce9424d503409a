"""Open an image's bytes with Pillow, within limits, whatever they are."""

from __future__ import annotations

import io
import warnings
from functools import cache

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from shard.jpeg import MarkerError, find_end, parse

# Pillow's own limit for a decompression bomb, here for every way to decode.
MAX_PIXELS = 178_956_970
# A progressive file of a few kilobytes can hold thousands of scans that each take a full pass to decode.
_MAX_SCANS = 200
_MOST_TILE = 1 << 24  # pixels of a TIFF's tile, of which an image may be a small part
# Others are read by Pillow's rarer plugins, or run programs (EPS), or are no pictures.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands; ISO/IEC 23008-12


class BadImageError(Exception):
    """The bytes are no image that can be decoded; the text is the reason."""


class NotAnImageError(BadImageError):
    """Nothing that Pillow knows."""


class TooManyPixelsError(BadImageError):
    """An image of more than `MAX_PIXELS`."""


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of an image as its header says; nothing is decoded.

    Raises:
        NotAnImageError: no header that Pillow knows.
        TooManyPixelsError: so many that Pillow does not say how many.
        BadImageError: a header that it objects to.
    """
    if data[:2] == b"\xff\xd8":
        try:
            layout = parse(data)
        except MarkerError:
            pass  # Pillow may still make something of it
        else:
            return layout.width, layout.height
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _open(data).size


def load(data: bytes) -> ImageFile.ImageFile:
    """Decode with Pillow.

    Raises:
        BadImageError: whatever Pillow says against it; its plugins raise anything on hostile bytes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metadata that is not quite right; size is checked below
        image = _open(data)
        if image.width * image.height > MAX_PIXELS:
            raise TooManyPixelsError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
        if image.format in ("JPEG", "MPO"):
            limit_scans(_scans(data))
        try:
            image.load()
        except Exception as error:
            raise BadImageError(_reason(error)) from error
    return image


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header with Pillow; raises as `load`."""
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        if image.format == "TIFF":
            _limit_tile(image)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        heic = data[4:8] == b"ftyp" and data[8:12] in _HEIC
        raise NotAnImageError(
            "HEIC, which is not read: save it as JPEG" if heic else "not an image"
        ) from error
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"more than {MAX_PIXELS} pixels") from error
    except Exception as error:
        raise BadImageError(_reason(error)) from error
    return image


def _limit_tile(image: Image.Image) -> None:
    """Refuse a TIFF whose tiles are much larger than it, since a whole one is decoded whatever the image's size."""
    tags = getattr(image, "tag_v2", {})
    sides = [tags.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
    if not all(isinstance(side, int) for side in sides):
        raise BadImageError("damaged: its tiles have no size")
    if sides[0] * sides[1] > max(_MOST_TILE, 2 * image.width * image.height):
        raise BadImageError(
            f"tiles of {sides[0]} x {sides[1]} pixels, for an image of {image.width} x {image.height}"
        )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "truncated" if "truncated" in text.lower() else text or repr(error)


def _scans(data: bytes) -> int:
    """Scans of a JPEG; where its markers are broken, which libjpeg gets over, at least as many as there are."""
    try:
        end, scans = find_end(data, parse(data))
    except MarkerError:
        end, scans = None, 0
    return scans if end is not None else data.count(b"\xff\xda")


@cache
def _formats() -> tuple[str, ...]:
    """Formats that this Pillow reads; it fails on names that it has not registered."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def limit_scans(scans: int) -> None:
    """Refuse a JPEG with so many scans, before it is decoded.

    Raises:
        BadImageError: they are too many.
    """
    if scans > _MAX_SCANS:
        raise BadImageError(f"{scans} scans, more than {_MAX_SCANS}")
