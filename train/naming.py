"""Remedies for names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str:
    """Remedy for an unknown name: the nearest valid one, or all."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(valid)}"


def nearest_flag(name: str, valid: Iterable[str]) -> str:
    """The same for flags, without their dashes, of which there are too many to name."""
    # Above difflib's 0.6: a word that shares a few letters with every other is no suggestion.
    near = difflib.get_close_matches(name, sorted(valid), n=1, cutoff=0.66)
    return f"did you mean '--{near[0]}'?" if near else "--help lists them"
