"""What differs between two datasets, by the names that samples had in their source."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shard.dataset import Dataset, Split, read_sources
from shard.errors import FeedlineError
from shard.labels import SEPARATOR

_EXAMPLES = 10


def diff(a: Dataset, b: Dataset) -> dict[str, Any]:
    """Differences of two datasets, JSON-able: classes, and per split what is only in one, or changed.

    Per split `only_a`, `only_b`, `label`, `bytes`: counts, with up to ten names of samples each in `examples`.
    `equal` says whether they hold the same classes, samples, labels and images, in whatever order;
    `same_order` whether their shards are the same, too.

    Raises:
        FeedlineError: one is multi-label and the other is not.
    """
    if a.multi_label != b.multi_label:
        which = a if a.multi_label else b
        raise FeedlineError(
            f"{which.root} is multi-label and the other is not: their labels cannot be compared"
        )
    splits: dict[str, Any] = {}
    for name in sorted({*a.split_names, *b.split_names}):
        if name in a.split_names and name in b.split_names:
            splits[name] = _diff_split(a, b, name)
        else:
            owner, key = (a, "only_a") if name in a.split_names else (b, "only_b")
            empty = {"only_a": 0, "only_b": 0, "label": 0, "bytes": 0, "examples": {}}
            splits[name] = {**empty, key: owner.manifest["splits"][name]["samples"]}
    classes = {
        "only_a": [c for c in a.classes if c not in set(b.classes)],
        "only_b": [c for c in b.classes if c not in set(a.classes)],
        "order": a.classes != b.classes and set(a.classes) == set(b.classes),
    }
    differences = sum(one[key] for one in splits.values() for key in ("only_a", "only_b", "label", "bytes"))
    return {
        "equal": differences == 0 and a.classes == b.classes,
        "same_order": a.fingerprint == b.fingerprint,
        "classes": classes,
        "splits": splits,
    }


def _diff_split(a: Dataset, b: Dataset, name: str) -> dict[str, Any]:
    whole = [_samples(dataset, name) for dataset in (a, b)]
    # A name may occur several times, in a dataset made of several. Equal samples pair first, in whatever order they
    # are, and of the rest the first of a name with the first, so that none is compared with two.
    same = ["source", "class", "size", "crc32"]
    numbered = [_numbered(rows, same) for rows in whole]
    keys = [*same, "occurrence"]
    rest = [
        numbered[side].join(numbered[1 - side].select(keys), keys, join_type="left anti").sort_by("row")
        for side in (0, 1)
    ]
    sides = []
    for rows, side in zip(rest, "ab", strict=True):
        columns = _numbered(rows.select(same), ["source"]).drop_columns(["row"])
        sides.append(columns.rename_columns([*["source"], *(f"{c}_{side}" for c in same[1:]), "occurrence"]))
    joined = sides[0].join(sides[1], ["source", "occurrence"], join_type="full outer", coalesce_keys=True)
    only_a, only_b = pc.is_null(joined["size_b"]), pc.is_null(joined["size_a"])
    found = {
        "only_a": only_a,
        "only_b": only_b,
        "label": pc.fill_null(pc.not_equal(joined["class_a"], joined["class_b"]), False),
        "bytes": pc.fill_null(
            pc.or_(
                pc.not_equal(joined["size_a"], joined["size_b"]),
                pc.not_equal(joined["crc32_a"], joined["crc32_b"]),
            ),
            False,
        ),
    }
    examples = {
        key: sorted(joined.filter(mask)["source"].to_pylist())[:_EXAMPLES] for key, mask in found.items()
    }
    return {
        **{key: int(pc.sum(mask).as_py() or 0) for key, mask in found.items()},
        "examples": {key: names for key, names in examples.items() if names},
    }


def _samples(dataset: Dataset, name: str) -> pa.Table:
    split = dataset.split(name)
    return pa.table(
        {
            "source": read_sources(split.root),
            "class": pa.array(_classes(split, dataset.classes), pa.string()),
            "size": pa.array(split.size),
            "crc32": pa.array(split.crc32),
        }
    )


def _numbered(rows: pa.Table, keys: list[str]) -> pa.Table:
    """Rows with their number, and with how many before them are equal in `keys`."""
    number = np.arange(len(rows))
    order = pc.sort_indices(rows, [(key, "ascending") for key in keys])  # equal ones stay in their order
    ordered = rows.select(keys).take(order)
    first = np.ones(len(rows), bool)
    if len(rows):
        changes = [pc.not_equal(ordered[key][1:], ordered[key][:-1]).to_numpy() for key in keys]
        first[1:] = np.any(changes, axis=0)
    occurrence = np.empty(len(rows), np.int64)
    occurrence[order.to_numpy()] = number - np.maximum.accumulate(np.where(first, number, 0))
    return rows.append_column("row", pa.array(number)).append_column("occurrence", pa.array(occurrence))


def _classes(split: Split, names: tuple[str, ...]) -> Any:
    """What each sample is of: strings [N]."""
    if split.lists is None:
        return np.asarray(names, dtype=object)[split.label]
    return [SEPARATOR.join(sorted(names[label] for label in split.lists[i])) for i in range(len(split))]


def text(found: dict[str, Any], a: str, b: str) -> str:
    """The differences for a terminal."""
    if found["equal"]:
        return f"{a} and {b} hold the same samples" + ("" if found["same_order"] else ", in another order")
    lines = []
    for side, name in (("only_a", a), ("only_b", b)):
        if classes := found["classes"][side]:
            lines.append(f"classes only in {name}: {len(classes)}, such as {', '.join(classes[:5])}")
    if found["classes"]["order"]:
        lines.append("the same classes in another order: labels differ")
    titles = {
        "only_a": f"only in {a}",
        "only_b": f"only in {b}",
        "label": "other class",
        "bytes": "other bytes",
    }
    for split, one in found["splits"].items():
        for key, title in titles.items():
            if one[key]:
                names = ", ".join(one["examples"].get(key, [])[:3])
                lines.append(f"{split}: {one[key]:,} {title}" + (f", such as {names}" if names else ""))
    return "\n".join(lines)
