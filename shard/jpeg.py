"""The markers of a JPEG file, without decoding it (ITU-T T.81, annex B; Exif 2.3, section 4.5.4).

Knows what libjpeg does not tell: which coding process, where the picture really ends, what orientation a
camera noted, and which bytes say so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SOI, _EOI, _SOS, _APP1, _APP2, _DHT = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xC4
_BARE = frozenset([0x01, *range(0xD0, 0xD8)])  # TEM and RST: markers without a length
_PROCESSES = {
    **dict.fromkeys((0xC0, 0xC1), "baseline"),  # with 8 bits, extended sequential differs in name only
    0xC2: "progressive",
    0xC3: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA, 0xCB), "arithmetic"),
}
# Within coded data FF is followed by 00 (a stuffed byte), a restart marker, or fill: anything else ends it.
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ORIENTATION_TAG = re.compile(
    rb"\x01\x12\x00\x03\x00\x00\x00\x01\x00(.)|\x12\x01\x03\x00\x01\x00\x00\x00(.)", re.S
)
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*(\d)")


class MarkerError(Exception):
    """The marker structure is broken; the text says where."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the header of a JPEG says.

    Attributes:
        process: baseline, progressive, arithmetic, lossless or hierarchical.
        precision: bits per component.
        width: pixels.
        height: pixels.
        components: 1 gray, 3 colour, 4 CMYK or YCCK.
        orientation: as Exif or XMP gives it, 1 (upright) to 8; 1 where they do not.
        noted_at: byte ranges of the segments that hold another orientation than 1.
        others_at: byte ranges of the segments that point to further pictures behind the first (CIPA DC-007, "MPF").
        scan_at: offset of the first start-of-scan marker.
        has_tables: whether it brings Huffman tables; frames of motion JPEG rely on standard ones, which libjpeg
            knows and hardware decoders do not.
    """

    process: str
    precision: int
    width: int
    height: int
    components: int
    orientation: int
    noted_at: tuple[tuple[int, int], ...]
    others_at: tuple[tuple[int, int], ...]
    scan_at: int
    has_tables: bool


def parse(data: bytes) -> Layout:
    """Read the segments up to the first scan.

    Raises:
        MarkerError: no start of image, a segment that is cut off, or no frame header.
    """
    if data[:2] != b"\xff\xd8":
        raise MarkerError("does not start with a JPEG's marker")
    frame: tuple[str, int, int, int, int] | None = None
    orientation, has_tables = 1, False
    noted_at, others_at = [], []
    position = 2
    while True:
        marker, begin, end = _segment(data, position)
        if marker == _SOS:
            break
        if marker in _PROCESSES:
            if frame is not None:
                raise MarkerError("has two frame headers")
            frame = _frame(_PROCESSES[marker], data[begin:end])
        elif marker == _APP1 and (found := _orientation(data[begin:end])) != 1:
            noted_at.append((position, end))
            orientation = found if orientation == 1 else orientation
        elif marker == _APP2 and data.startswith(b"MPF\0", begin):
            others_at.append((position, end))
        has_tables = has_tables or marker == _DHT
        position = end
    if frame is None:
        raise MarkerError("has no frame header")
    return Layout(*frame, orientation, tuple(noted_at), tuple(others_at), position, has_tables)


def find_end(data: bytes, layout: Layout) -> tuple[int | None, int]:
    """Walk the scans: offset behind the end-of-image marker (None if there is none), and number of scans."""
    position, scans = layout.scan_at, 0
    while True:
        try:
            marker, _, end = _segment(data, position)
        except MarkerError:
            return None, scans
        if marker == _EOI:
            return end, scans
        if marker == _SOS:
            scans += 1
            found = _END_OF_SCAN.search(data, end)
            if found is None:
                return None, scans
            end = found.start()
        position = end


def without(data: bytes, ranges: tuple[tuple[int, int], ...]) -> bytes:
    """`data` without the given byte ranges, which are in order and do not overlap."""
    if not ranges:
        return data
    kept, position = [], 0
    for begin, end in ranges:
        kept.append(data[position:begin])
        position = end
    return b"".join([*kept, data[position:]])


def _segment(data: bytes, position: int) -> tuple[int, int, int]:
    """Marker at `position`, and where its content begins and ends."""
    while data[position : position + 2] == b"\xff\xff":  # fill bytes
        position += 1
    if len(data) < position + 2:
        raise MarkerError("ends before its picture begins")
    if data[position] != 0xFF or data[position + 1] in (0x00, _SOI):
        raise MarkerError(f"has no marker at byte {position}")
    marker, begin = data[position + 1], position + 4
    if marker == _EOI or marker in _BARE:
        return marker, position + 2, position + 2
    end = position + 2 + int.from_bytes(data[position + 2 : begin], "big")
    if end < begin or end > len(data):
        raise MarkerError(f"has a segment of a wrong length at byte {position}")
    return marker, begin, end


def _frame(process: str, content: bytes) -> tuple[str, int, int, int, int]:
    if len(content) < 6:
        raise MarkerError("has a frame header that is too short")
    height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    if not (height and width):
        raise MarkerError(f"is {width} x {height} pixels")
    return process, content[0], width, height, content[5]


def _orientation(content: bytes) -> int:
    if content.startswith(b"Exif\0\0"):
        for match in _ORIENTATION_TAG.finditer(content):
            value = (match[1] or match[2])[0]
            if 2 <= value <= 8:
                return value
    elif content.startswith(b"http://ns.adobe.com/xap/") and (found := _XMP_ORIENTATION.search(content)):
        return int(found[1]) if 2 <= int(found[1]) <= 8 else 1
    return 1
