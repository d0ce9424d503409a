"""Arguments passed on to timm: "name=value, name=value"."""

from __future__ import annotations

from typing import Any

import yaml

from shard.errors import FeedlineError


def parse_arguments(key: str, text: str) -> dict[str, Any]:
    """Values by name; numbers, true, false and words are told apart as in YAML.

    Args:
        key: where the text stands, for the error.
        text: such as "trust_clip=true, eps=1e-6".

    Raises:
        FeedlineError: not of the form name=value.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (x.strip() for x in part.partition("="))
        if not equals or not name.isidentifier() or not value:
            raise FeedlineError(f"{key} is {text!r}; give name=value, separated by commas")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return (
            float(text) if not text.lstrip("+-").isdigit() else int(text)
        )  # YAML 1.1 takes 1e-4 for a string
    except ValueError:
        return yaml.safe_load(text)
