"""Readable names of WordNet ids, from the tables that timm ships; timm itself is not imported."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

_WNID = re.compile(r"n\d{8}")


def readable(classes: Sequence[str]) -> tuple[str, ...]:
    """By class, the lemmas of its WordNet id, or "" where the class is no id or not in the table."""
    if not any(_WNID.fullmatch(name) for name in classes):
        return ("",) * len(classes)
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        return ("",) * len(classes)
    path = Path(found.submodule_search_locations[0], "data", "_info", "imagenet_synset_to_lemma.txt")
    lemmas = dict(line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(lemmas.get(name, "") for name in classes)
