"""Files that a folder of images really holds, made here, each with what the packer must do with it."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

# 24 x 16 pixels, arithmetic coding: made with `cjpeg -arithmetic`, since Pillow does not write it.
_ARITHMETIC = base64.b64decode("""
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i
Z2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj
Y2NjY2NjY2P/yQARCAAQABgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDSFn8+woHlAx8Ymh5tMZJwPYXwFVQ3
YISFQyQfPcduzHyssP/Z
""")


class Odd(NamedTuple):
    """A file and its fate: "kept", a kind of repair, or "rejected: " and part of the reason."""

    data: bytes
    fate: str


def picture(width: int = 130, height: int = 100) -> Image.Image:
    """A smooth picture with some texture, the same every time."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [
        128 + 100 * np.sin(rows / 9),
        128 + 100 * np.cos(columns / 13),
        (7 * rows * columns) % 256 * 0.2 + 80,
    ]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Write `image` in the format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def exif(orientation: int | None) -> bytes:
    """Exif block, with or without an orientation."""
    block = Image.Exif()
    block[0x010F] = "Camera"
    if orientation is not None:
        block[0x0112] = orientation
    return block.tobytes()


def segment(marker: int, content: bytes) -> bytes:
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def without(data: bytes, marker: int) -> bytes:
    """A JPEG without its header segments of one kind."""
    out, position = data[:2], 2
    while data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] != marker:
            out += data[position:end]
        position = end
    return out + data[position:]


def patched(data: bytes, after: bytes, skip: int, new: bytes) -> bytes:
    """Overwrite bytes, `skip` behind the first occurrence of `after`."""
    place = data.index(after) + len(after) + skip
    return data[:place] + new + data[place + len(new) :]


def in_scan(data: bytes, share: float, new: bytes) -> bytes:
    """Overwrite bytes of the coded data."""
    start = data.index(b"\xff\xda") + 14
    place = start + int((len(data) - start) * share)
    return data[:place] + new + data[place + len(new) :]


def huge_png() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def corpus() -> dict[str, Odd]:
    """Every kind of file by name."""
    return {**_plain(), **_surrounded(), **_other_jpeg(), **_other_format(), **_broken()}


def _plain() -> dict[str, Odd]:
    rgb = picture()
    jpeg = encoded(rgb, "JPEG", quality=90)
    icc = segment(0xE2, b"ICC_PROFILE\0\1\1" + b"x" * 500)
    files = {
        "baseline.jpg": jpeg,
        "gray.jpg": encoded(rgb.convert("L"), "JPEG"),
        "444.jpg": encoded(rgb, "JPEG", subsampling=0),
        "422.jpg": encoded(rgb, "JPEG", subsampling=1),
        "stored-as-rgb.jpg": encoded(rgb, "JPEG", keep_rgb=True),
        "restart-markers.jpg": encoded(rgb, "JPEG", restart_marker_blocks=4),
        "optimised-tables.jpg": encoded(rgb, "JPEG", optimize=True),
        "coarse.jpg": encoded(rgb, "JPEG", quality=1),
        "one-pixel.jpg": encoded(rgb.crop((0, 0, 1, 1)), "JPEG"),
        "tall.jpg": encoded(rgb.resize((1, 5000)), "JPEG"),
        "comment.jpg": jpeg[:2] + segment(0xFE, b"c" * 60000) + jpeg[2:],
        "profile.jpg": jpeg[:2] + icc + jpeg[2:],
        "fill-bytes.jpg": jpeg[:2] + b"\xff\xff\xff" + jpeg[2:],
        "no-jfif.jpg": without(jpeg, 0xE0),
        "exif-upright.jpg": encoded(rgb, "JPEG", exif=exif(1)),
        "exif-no-orientation.jpg": encoded(rgb, "JPEG", exif=exif(None)),
        "exif-garbage.jpg": jpeg[:2] + segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff") + jpeg[2:],
        "picture.JPEG": jpeg,
    }
    return {name: Odd(data, "kept") for name, data in files.items()}


def _surrounded() -> dict[str, Odd]:
    rgb = picture()
    jpeg = encoded(rgb, "JPEG", quality=90)
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    return {
        "exif-rotated.jpg": Odd(encoded(rgb, "JPEG", exif=exif(6)), "exif"),
        "exif-mirrored.jpg": Odd(encoded(rgb, "JPEG", exif=exif(2)), "exif"),
        "exif-rotated.webp": Odd(encoded(rgb, "WEBP", exif=exif(6)), "format,exif"),
        "xmp-rotated.jpg": Odd(jpeg[:2] + segment(0xE1, xmp) + jpeg[2:], "exif"),
        "trailing-text.jpg": Odd(jpeg + b"some camera's notes", "trailing"),
        "trailing-zeros.jpg": Odd(jpeg + bytes(4096), "trailing"),
        "trailing-newline.jpg": Odd(jpeg + b"\n", "trailing"),
        "two-in-one.jpg": Odd(jpeg + jpeg, "trailing"),
        "several-pictures.mpo": Odd(encoded(rgb, "MPO", save_all=True, append_images=[rgb]), "trailing"),
        "no-end-marker.jpg": Odd(jpeg[:-2], "unterminated"),
    }


def _other_jpeg() -> dict[str, Odd]:
    rgb = picture()
    jpeg = encoded(rgb, "JPEG", quality=90)
    cmyk = encoded(rgb.convert("CMYK"), "JPEG", quality=95)
    return {
        "progressive.jpg": Odd(encoded(rgb, "JPEG", progressive=True), "progressive"),
        "progressive-gray.jpg": Odd(encoded(rgb.convert("L"), "JPEG", progressive=True), "progressive"),
        "arithmetic.jpg": Odd(_ARITHMETIC, "arithmetic"),
        "cmyk.jpg": Odd(cmyk, "color"),
        "ycck.jpg": Odd(patched(cmyk, b"Adobe", 6, b"\x02"), "color"),
        "cmyk-progressive.jpg": Odd(encoded(rgb.convert("CMYK"), "JPEG", progressive=True), "color"),
        "junk-between-markers.jpg": Odd(jpeg[:20] + b"\x12\x34\x56" + jpeg[20:], "markers"),
        "no-huffman-tables.jpg": Odd(without(encoded(rgb, "JPEG"), 0xC4), "tables"),
        "odd-jfif-revision.jpg": Odd(patched(jpeg, b"JFIF\0", 0, b"\x09\x09"), "warning"),
        "twelve-bits.jpg": Odd(patched(jpeg, b"\xff\xc0", 2, b"\x0c"), "rejected: "),
    }


def _other_format() -> dict[str, Odd]:
    rgb = picture()
    alpha = rgb.copy()
    alpha.putalpha(rgb.convert("L"))
    palette = rgb.quantize(16)
    deep = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    files = {
        "png-in-disguise.JPEG": encoded(rgb, "PNG"),
        "alpha.png": encoded(alpha, "PNG"),
        "gray-alpha.png": encoded(alpha.convert("LA"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette-transparent.png": encoded(palette, "PNG", transparency=b"\x00\x80\xff"),
        "one-bit.png": encoded(rgb.convert("1"), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "animated.png": encoded(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)]),
        "lossy.webp": encoded(rgb, "WEBP"),
        "lossless-alpha.webp": encoded(alpha, "WEBP", lossless=True),
        "animated.webp": encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
        "plain.bmp": encoded(rgb, "BMP"),
        "palette.bmp": encoded(palette, "BMP"),
        "still.gif": encoded(palette, "GIF"),
        "animated.gif": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "plain.tif": encoded(rgb, "TIFF"),
        "lzw.tiff": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg-inside.tiff": encoded(rgb, "TIFF", compression="jpeg"),
        "cmyk.tiff": encoded(rgb.convert("CMYK"), "TIFF"),
        "deep.tiff": encoded(deep, "TIFF"),
        "pages.tiff": encoded(rgb, "TIFF", save_all=True, append_images=[rgb.rotate(90)]),
        "exif-rotated.tiff": encoded(rgb, "TIFF", exif=exif(6)),
        "plain.ppm": encoded(rgb, "PPM"),
        "deep.pgm": encoded(deep, "PPM"),
        "wavelets.jp2": encoded(rgb, "JPEG2000"),
    }
    return {name: Odd(data, "format") for name, data in files.items()}


def _broken() -> dict[str, Odd]:
    rgb = picture()
    jpeg = encoded(rgb, "JPEG", quality=90)
    restarts = encoded(rgb, "JPEG", restart_marker_blocks=4)
    png = encoded(rgb, "PNG")
    return {
        "zero.JPEG": Odd(b"", "rejected: empty file"),
        "one-byte.jpg": Odd(b"\xff", "rejected: not an image"),
        "zeros.jpg": Odd(bytes(5000), "rejected: not an image"),
        "phone.jpg": Odd(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "rejected: HEIC"),
        "text.JPEG": Odd(b"no picture at all\n" * 50, "rejected: not an image"),
        "error-page.jpg": Odd(b"<!doctype html><title>404 Not Found</title>", "rejected: not an image"),
        "vector.jpg": Odd(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "rejected: not an image"),
        "document.jpg": Odd(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "rejected: not an image"),
        "program.jpg": Odd(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "rejected: not an image"),
        "archive.jpg": Odd(b"PK\x05\x06" + bytes(18), "rejected: not an image"),
        "truncated.jpg": Odd(jpeg[: len(jpeg) // 2], "rejected: truncated"),
        "truncated-a-little.jpg": Odd(jpeg[:-60], "rejected: truncated"),
        "truncated-in-header.jpg": Odd(jpeg[:150], "rejected: "),
        "truncated-but-closed.jpg": Odd(jpeg[: len(jpeg) // 2] + b"\xff\xd9", "rejected: damaged"),
        "truncated.png": Odd(png[: len(png) // 2], "rejected: truncated"),
        "truncated-progressive.jpg": Odd(
            encoded(rgb, "JPEG", progressive=True)[:-400], "rejected: truncated"
        ),
        "damaged.jpg": Odd(in_scan(jpeg, 0.5, b"\x37" * 40), "rejected: damaged"),
        "wrong-restarts.jpg": Odd(patched(restarts, b"\xff\xd3", -1, b"\xd6"), "rejected: damaged"),
        "taller-than-its-data.jpg": Odd(patched(jpeg, b"\xff\xc0", 3, b"\x02\x00"), "rejected: damaged"),
        "no-height.jpg": Odd(patched(jpeg, b"\xff\xc0", 3, b"\0\0"), "rejected: "),
        "no-quantisation.jpg": Odd(without(jpeg, 0xDB), "rejected: "),
        "no-frame.jpg": Odd(without(jpeg, 0xC0), "rejected: "),
        "headers-only.jpg": Odd(jpeg[: jpeg.index(b"\xff\xda")] + b"\xff\xd9", "rejected: "),
        "bomb.jpg": Odd(patched(jpeg, b"\xff\xc0", 3, b"\xff\xf0\xff\xf0"), "rejected: 65520 x 65520 pixels"),
        "bomb.png": Odd(huge_png(), "rejected: "),
        "endless.png": Odd(
            encoded(Image.new("RGB", (65_501, 1)), "PNG"), "rejected: 65501 x 1 pixels, more than 65500"
        ),
        "floating.tiff": Odd(encoded(rgb.convert("F"), "TIFF"), "rejected: floating-point"),
    }
