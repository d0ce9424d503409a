"""A font for Pillow with the letters of any script: class names are written in all of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Files that Pillow finds in the system's folders, of fonts with many scripts: free ones, then macOS's and Windows's.
_FILES = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "NotoSansThai-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "Arial Unicode.ttf",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "segoeui.ttf",
    "msyh.ttc",
    "malgun.ttf",
)
_NOBODYS = "\U0010ffff"  # no font has it: it is drawn as the box for what is missing


def font_for(text: str, size: int) -> Font:
    """The first font that has every letter of a text: Pillow's own, or one of this machine's.

    Where none has all, the one with the most of them: the others are drawn as boxes.

    Args:
        text: to be drawn.
        size: of the letters, pixels.
    """
    letters = {letter for letter in text if letter.isprintable() and not letter.isspace()}
    best, least = _own(size), len(letters) + 1
    for font in _fonts(size):
        lacking = len(letters) - _count(font, letters)
        if lacking < least:
            best, least = font, lacking
        if not lacking:
            break
    return best


def _fonts(size: int) -> Iterable[Font]:
    yield _own(size)
    for file in _FILES:
        font = _installed(file, size)
        if font is not None:
            yield font


@functools.lru_cache
def _own(size: int) -> Font:
    return ImageFont.load_default(size)


@functools.lru_cache
def _installed(file: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(file, size)
    except OSError:  # there is no such file
        return None


def _count(font: Font, letters: Iterable[str]) -> int:
    box = _drawn(font, _NOBODYS)
    return sum(_drawn(font, letter) != box for letter in letters)


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
