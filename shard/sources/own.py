"""Class names of datasets of ours whose shards are packed anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from shard.errors import FeedlineError
from shard.sources.inputs import Input
from shard.storage import location, storage_errors

_REMEDY = "unpack them and pack the images, or give --classes FILE if one list holds for the numbers of all"


def own_classes(root: str, inputs: Sequence[Input]) -> tuple[str, ...] | None:
    """Class list of the datasets of ours that shards lie in; None: they lie in none.

    Raises:
        FeedlineError: their numbers do not mean the same classes, or some lie in a dataset and others do not.
    """
    stores: dict[str, Path] = {}
    known: dict[str, tuple[str, ...] | None] = {}
    found: dict[tuple[str, ...] | None, str] = {}
    # Each folder once, and each place above it: asking a store is a request.
    for base, inside in dict.fromkeys((one.base, one.name.rpartition("/")[0]) for one in inputs):
        if base not in stores:
            stores[base] = location(base)
        folder = stores[base] / inside if inside else stores[base]
        # Up to what was given, and at least to the folder above the shard's own, where our layout has the manifest.
        place = _nearest(folder, inside.count("/") + 2, known)
        found.setdefault(known[str(place)] if place else None, str(place or folder))
    if len(found) > 1:
        raise FeedlineError(f"{root} holds {_difference(found)}; {_REMEDY}")
    return next(iter(found))


def agree(
    names: dict[int, str], url: str, named: Iterable[tuple[int, str]], classes: tuple[str, ...] | None
) -> None:
    """Add what a shard's samples call their classes to what other shards' do.

    Args:
        names: by label, of the shards before; added to.
        url: of the shard.
        named: labels and names, as our packer writes them beside each sample.
        classes: the list above the shards, which may call classes otherwise; None: there is none.

    Raises:
        FeedlineError: one label has two names, or one name two labels.
    """
    listed = {name: label for label, name in enumerate(classes or ())}
    labels = {name: label for label, name in names.items()}
    for label, name in sorted(named):
        if names.setdefault(label, name) != name:
            raise FeedlineError(
                f"label {label} is {name!r} in {url}, and {names[label]!r} in another of its samples or in a shard "
                f"before it: its number means several classes; {_REMEDY}"
            )
        if (other := labels.setdefault(name, label)) != label or (other := listed.get(name, label)) != label:
            where = (
                "the dataset.json above it"
                if name in listed
                else "another of its samples or a shard before it"
            )
            raise FeedlineError(
                f"{name!r} is label {label} in {url}, and label {other} in {where}: they are of datasets of different "
                f"classes; {_REMEDY}"
            )


def numbered(names: Mapping[int, str], count: int) -> tuple[str, ...]:
    """Class list without a manifest: what samples call their classes, or the numbers if none says it.

    Raises:
        FeedlineError: samples of some classes say it, and those of others do not.
    """
    if names and (missing := [label for label in range(count) if label not in names]):
        raise FeedlineError(
            f"no sample says what the class of label {missing[0]} is called, but those of label {min(names)} do "
            f"({names[min(names)]!r}); give all names with --classes FILE"
        )
    return tuple(names.get(label, str(label)) for label in range(count))


def _nearest(place: Path, steps: int, known: dict[str, tuple[str, ...] | None]) -> Path | None:
    """The dataset that a folder is or lies in, looked for that many folders up; notes in `known` what it saw."""
    from shard.dataset import MANIFEST, Dataset

    for _ in range(steps):
        if str(place) not in known:
            with storage_errors("read", place / MANIFEST):
                there = (place / MANIFEST).exists()
            known[str(place)] = Dataset.open(place).classes if there else None
        if known[str(place)] is not None:
            return place
        place = place.parent
    return None


def _difference(found: dict[tuple[str, ...] | None, str]) -> str:
    lists = [(classes, place) for classes, place in found.items() if classes is not None]
    if None in found:
        return (
            f"shards of the dataset {lists[0][1]}, and others in {found[None]}, which belongs to none: "
            "their numbers need not mean the same classes"
        )
    (one, a), (two, b) = lists[:2]
    for label, (first, second) in enumerate(zip(one, two, strict=False)):
        if first != second:
            return f"datasets of different classes: label {label} is {first!r} in {a} and {second!r} in {b}"
    return f"datasets of different classes: {a} has {len(one)} and {b} has {len(two)}"
