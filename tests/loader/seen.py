"""Which samples a loader gave."""

from collections.abc import Iterator

from loader import Batch, Loader


def seen(batches: Iterator[Batch] | Loader) -> list[int]:
    """Ids of the valid rows, in order."""
    return [
        i for batch in batches for i, ok in zip(batch.ids.tolist(), batch.valid.tolist(), strict=True) if ok
    ]
