"""Judge one image file's bytes: keep, mend or reject."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

import simplejpeg
from PIL import ExifTags, Image

from shard.errors import FeedlineError
from shard.jpeg import Layout, MarkerError, find_end, parse, without
from shard.opening import (
    MAX_PIXELS,
    BadImageError,
    NotAnImageError,
    TooManyPixelsError,
    limit_scans,
    load,
    size_of,
)

__all__ = [
    "KEEPABLE",
    "MAX_PIXELS",
    "BadImageError",
    "Checked",
    "Exif",
    "NotAnImageError",
    "Policy",
    "TooManyPixelsError",
    "check",
    "size_of",
]

_MAX_SIDE = 65_500  # libjpeg's limit, of what it writes and reads
KEEPABLE = ("progressive", "arithmetic", "trailing", "warning")
# What libjpeg warns of when pixels are missing or wrong: nothing can bring them back.
_LOST = ("premature end", "bad huffman", "bad arithmetic", "found marker", "progression", "bogus")
_CLOSING = b"\xff\xd9"

# What turns pixels upright, by the orientation that the camera noted (Exif 2.3, tag 274). Not ImageOps.exif_transpose:
# it also writes the rest of the note anew, and raises on what is odd there.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Exif = Literal["strip", "apply", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How images are judged and what is done to them.

    Attributes:
        check: "decode" every image, or trust a plain JPEG whose "header" is sound.
        on_bad: "repair" what can be mended and reject the rest, "skip" also what could be mended, or "fail".
        exif: orientation noted by a camera: "strip" removes the note, so that every reader sees the pixels as
            torchvision does; "apply" turns the pixels; "keep" leaves the note.
        keep: kinds out of `KEEPABLE` that are stored as they are, since this project's decoders read them.
        max_side: pixels; a larger image is reduced to it.
        short_side: pixels; an image whose shorter side is larger is reduced to it.
        quality: of the JPEGs that are encoded here, 1 to 100.
    """

    check: Literal["decode", "header"] = "decode"
    on_bad: Literal["repair", "skip", "fail"] = "repair"
    exif: Exif = "strip"
    keep: tuple[str, ...] = ()
    max_side: int | None = None
    short_side: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        """Reject values out of range."""
        for name in ("max_side", "short_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise FeedlineError(f"{name} is {value}; it must be at least 1 pixel")
        if not 1 <= self.quality <= 100:
            raise FeedlineError(f"quality is {self.quality}; it must lie in 1 … 100")
        if unknown := [kind for kind in self.keep if kind not in KEEPABLE]:
            raise FeedlineError(f"keep names {unknown[0]!r}; choose out of {', '.join(KEEPABLE)}")


@dataclass(slots=True)
class Checked:
    """An image that decodes.

    Attributes:
        data: a JPEG, the original bytes unless `changes`.
        width: pixels.
        height: pixels.
        changes: what was done to it, by kind: a sentence each.
    """

    data: bytes
    width: int
    height: int
    changes: dict[str, str] = field(default_factory=dict)


def check(data: bytes, policy: Policy = Policy()) -> Checked:
    """Judge an image, and mend it as far as `policy` says.

    A good baseline JPEG of one or three components is kept byte for byte. Another JPEG of these is encoded
    anew with its own quantisation tables; whatever else Pillow decodes becomes an RGB JPEG, 4:4:4.

    Raises:
        BadImageError: empty, truncated, damaged, too large, no image, or not to be mended.
    """
    if not data:
        raise BadImageError("empty file")
    checked = _jpeg(data, policy) if data[:2] == b"\xff\xd8" else _convert(data, policy, "format")
    mended = {kind: text for kind, text in checked.changes.items() if kind not in ("exif", "note", "size")}
    if mended and policy.on_bad != "repair":
        raise BadImageError(f"needs repair: {'; '.join(mended.values())}")
    return checked


def _jpeg(data: bytes, policy: Policy) -> Checked:
    try:
        layout = parse(data)
    except MarkerError as error:
        return _convert(data, policy, "markers", str(error))
    if layout.width * layout.height > MAX_PIXELS:
        raise TooManyPixelsError(f"{layout.width} x {layout.height} pixels, more than {MAX_PIXELS}")
    if layout.precision != 8 or layout.components not in (1, 3):
        return _convert(data, policy, "color")
    turned = layout.orientation != 1 and policy.exif == "apply"
    if turned or _reduced(layout.width, layout.height, policy) is not None:
        return _convert(data, policy)
    if layout.process != "baseline" and layout.process not in policy.keep:
        return _convert(data, policy, layout.process)
    if layout.process == "baseline" and not layout.has_tables:
        return _convert(data, policy, "tables", "no Huffman tables")
    return _stored(data, layout, policy)


def _stored(data: bytes, layout: Layout, policy: Policy) -> Checked:
    """Keep the coded picture of a JPEG; only what surrounds it may go."""
    result = Checked(data, layout.width, layout.height)
    trusted = policy.check == "header" and data.endswith(_CLOSING)
    end, scans = (len(data), 1) if trusted else find_end(data, layout)
    limit_scans(scans)
    unwanted: tuple[tuple[int, int], ...] = ()
    if layout.noted_at and policy.exif == "strip":
        unwanted = layout.noted_at
        result.changes["exif"] = f"orientation {layout.orientation} removed"
    if end is None:
        result.data, result.changes["unterminated"] = data + _CLOSING, "end-of-image marker added"
    elif end < len(data) and "trailing" not in policy.keep:
        unwanted += (*layout.others_at, (end, len(data)))
        result.changes["trailing"] = f"{len(data) - end} bytes behind the image removed"
    result.data = without(result.data, tuple(sorted(unwanted)))
    if policy.check == "header" and end is not None:
        return result
    try:
        _decode(result.data, layout)
    except ValueError as error:
        reason = " ".join(str(error).split())
        if any(word in reason.lower() for word in _LOST):
            raise BadImageError("truncated" if end is None else f"damaged: {reason}") from error
        if "warning" not in policy.keep or not _decodes_leniently(result.data):
            return _convert(data, policy, "warning", reason)
    return result


_local = threading.local()  # images are checked in threads, too


def _decode(data: bytes, layout: Layout) -> None:
    """Decode all coefficients, and the brightness into memory that is used again.

    Chroma is decoded as far as anything can be wrong with it; interpolating it and turning it into colours
    cannot fail, and takes a fifth of the time. Fresh memory would take a tenth.
    """
    needed = layout.width * layout.height
    scratch = getattr(_local, "scratch", b"")
    if len(scratch) < needed:
        scratch = _local.scratch = bytearray(needed)
    simplejpeg.decode_jpeg(data, "GRAY", buffer=memoryview(scratch)[:needed], strict=True)


def _decodes_leniently(data: bytes) -> bool:
    """Whether the loader, which overlooks warnings where its decoder can, will decode it."""
    try:
        simplejpeg.decode_jpeg(data, "RGB", strict=False)
    except ValueError:
        return False
    return True


def _convert(data: bytes, policy: Policy, kind: str = "", why: str = "") -> Checked:
    """Decode with Pillow and encode a baseline JPEG."""
    image = load(data)
    changes = {kind: why or f"{image.format}, mode {image.mode}, {kind}, to baseline JPEG"} if kind else {}
    picture: Image.Image = image
    orientation = _orientation(image)
    if orientation is None:
        changes["note"] = "removed, since it cannot be read"
    elif orientation != 1:
        changes["exif"] = f"orientation {orientation} removed"
        if policy.exif == "apply":
            changes["exif"] = "orientation applied"
            picture = image.transpose(_TURNS[orientation])
    if reduced := _reduced(picture.width, picture.height, policy):
        changes["size"] = f"{picture.width} x {picture.height} reduced to {reduced[0]} x {reduced[1]}"
        picture = _eight_bits(picture).resize(reduced, Image.Resampling.LANCZOS)
    if max(picture.size) > _MAX_SIDE:
        raise BadImageError(f"{picture.width} x {picture.height} pixels, more than {_MAX_SIDE} on a side")
    buffer = io.BytesIO()
    if picture is image and image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        image.format = "JPEG"  # of an MPO the first picture; "keep" wants to hear it
        image.save(buffer, "JPEG", quality="keep", exif=b"")
    else:
        # Pillow would put a GIF's comment in, and raise where it is too long for a JPEG.
        _eight_bits(picture).save(
            buffer, "JPEG", quality=policy.quality, subsampling=0, exif=b"", comment=b""
        )
    return Checked(buffer.getvalue(), picture.width, picture.height, changes)


def _orientation(image: Image.Image) -> int | None:
    """What the camera noted, 1 (upright) to 8; 1 where it noted nothing, None where it cannot be read."""
    try:
        noted = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  (Pillow raises anything on hostile bytes; no note may end a build, it is recorded)
        return None
    return int(noted) if noted in range(2, 9) else 1


def _reduced(width: int, height: int, policy: Policy) -> tuple[int, int] | None:
    """Size after the limits of the policy, None where they change nothing."""
    scale = min(
        1.0,
        (policy.max_side or max(width, height)) / max(width, height),
        (policy.short_side or min(width, height)) / min(width, height),
    )
    if scale == 1.0:
        return None
    return max(1, round(width * scale)), max(1, round(height * scale))


def _eight_bits(image: Image.Image) -> Image.Image:
    """RGB; alpha is dropped as torchvision's loader does."""
    if image.mode == "F":
        raise BadImageError("floating-point pixels, whose range is not known")
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette may hold transparency in more than one way
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
        image = image.convert("I")
        extrema: Any = image.getextrema()
        if extrema[0] < 0 or extrema[1] >= 1 << 16:
            raise BadImageError("pixels of 32 bits, whose range is not known")
        image = image.point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")
