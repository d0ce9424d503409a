"""How many images may be rejected: --max-bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shard.errors import FeedlineError


def allowed_bad(text: str, total: int) -> int:
    """How many of `total` images --max-bad allows.

    Raises:
        FeedlineError: it is no count or share.
    """
    try:
        allowed = int(float(text[:-1]) / 100 * total) if text.endswith("%") else int(text)
        negative = text.startswith("-")
    except ValueError as error:
        raise FeedlineError(
            f"max_bad is {text!r}; give a count such as 20 or a share such as 0.1%"
        ) from error
    if negative:
        raise FeedlineError(f"max_bad is {text!r}; it must not be negative")
    return allowed


def check_bad(bad: Sequence[Mapping[str, str]], allowed: int) -> None:
    """Make sure that no more than that are rejected.

    Raises:
        FeedlineError: there are more; names the first.
    """
    if len(bad) > allowed:
        named = "; ".join(f"{row['source']}: {row['reason']}" for row in bad[:5])
        raise FeedlineError(
            f"{len(bad)} images rejected, more than the {allowed} that --max-bad allows ({named}); repair or remove "
            "them, or run again with a higher --max-bad"
        )
