"""Whether a dataset's classes are those of a network, and which number each has there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shard.errors import FeedlineError


def label_numbers(
    known: Sequence[str], found: Sequence[str], checkpoint: Path, data: str | Path
) -> npt.NDArray[np.int64] | None:
    """The network's number of each class of the dataset; None where both number them alike.

    Classes that are named by their numbers ("0" … "999", as ImageNetV2's folders are) are taken by number.

    Args:
        known: class names of the network, by label.
        found: class names of the dataset, by label.
        checkpoint: for the error.
        data: for the error.

    Raises:
        FeedlineError: the names differ; says which.
    """
    if tuple(known) == tuple(found):
        return None
    numbers = {name: label for label, name in enumerate(known)}
    if set(found) != set(known) and set(found) == {str(i) for i in range(len(known))}:
        numbers = {str(i): i for i in range(len(known))}
    missing = [name for name in known if name not in found]
    extra = [name for name in found if name not in numbers]
    if extra or len(found) != len(known):
        parts = []
        if extra:
            parts.append(f"{len(extra)} of them are unknown to the network, the first {extra[0]!r}")
        if missing:
            parts.append(f"{len(missing)} of the network's are missing, the first {missing[0]!r}")
        raise FeedlineError(
            f"{data} has {len(found)} classes and {checkpoint} {len(known)}, and they differ: {'; '.join(parts)}; "
            "evaluate on a dataset with the same class names (`python -m shard build --classes FILE` sets them)"
        )
    return np.array([numbers[name] for name in found], np.int64)
