"""matplotlib for names that people chose: written as they are, in letters of any script."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_OWN = "DejaVu Sans"  # comes with matplotlib
_BOXES = "Last Resort"  # so does this one, which has a box for everything


def has_matplotlib() -> bool:
    """Whether the extra feedline[plot] is there."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def pyplot_for(names: Iterable[str]) -> Iterator[Any]:
    """`matplotlib.pyplot` without a display, for a figure that is made and saved meanwhile.

    A name with two dollar signs is no formula. Letters that matplotlib's own font lacks come from fonts of this
    machine; those that none has are drawn as boxes, which is told.

    Args:
        names: that the figure will show.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    families, missing = _families({letter for name in names for letter in name if letter.isprintable()})
    if missing:
        print(
            f"no font of this machine has {''.join(sorted(missing))[:20]!r}: drawn as boxes; install one that has, "
            f"such as Debian's fonts-noto-cjk, and remove {mpl.get_cachedir()}, matplotlib's list of them",
            file=sys.stderr,
        )
    with mpl.rc_context({"font.family": families, "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # told above
        yield pyplot


def _families(letters: set[str]) -> tuple[list[str], set[str]]:
    """Fonts to look a letter up in, one after the other, and the letters that none of them has."""
    from matplotlib.font_manager import findfont, fontManager

    families, missing = [_OWN], letters - _letters(findfont(_OWN))
    files = {font.name: font.fname for font in fontManager.ttflist if font.style == "normal"}
    for name in sorted(files, key=lambda name: ("Sans" not in name, name)):
        if not missing:
            break
        if not name.startswith(_BOXES) and (found := missing & _letters(files[name])):
            families.append(name)
            missing -= found
    return families, missing


def _letters(file: str) -> set[str]:
    from matplotlib.font_manager import get_font

    try:
        return set(map(chr, get_font(file).get_charmap()))
    except (OSError, RuntimeError):  # FreeType cannot read it, as it is with fonts of bitmaps in colour
        return set()
