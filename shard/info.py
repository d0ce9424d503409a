"""Describe a dataset in figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from shard.dataset import Dataset


def info(dataset: Dataset) -> dict[str, Any]:
    """Figures of a dataset, JSON-able: classes, and per split its samples, shards, bytes and class balance."""
    splits: dict[str, Any] = {}
    for name in dataset.split_names:
        about, split = dataset.manifest["splits"][name], dataset.split(name)
        counts = split.class_counts(len(dataset.classes))
        splits[name] = {
            "samples": about["samples"],
            "shards": len(about["shards"]),
            "bytes": about["bytes"],
            "repaired": about["repaired"],
            "rejected": about["rejected"],
            "image_bytes_mean": float(split.size.mean()),
            "width_median": float(np.median(split.width)),
            "height_median": float(np.median(split.height)),
            "class_samples_min": int(counts.min()),
            "class_samples_median": float(np.median(counts)),
            "class_samples_max": int(counts.max()),
            **({"labels_mean": float(counts.sum() / len(split))} if dataset.multi_label else {}),
        }
    return {
        "path": str(dataset.root),
        "classes": len(dataset.classes),
        "fingerprint": dataset.fingerprint,
        "settings": dataset.manifest["settings"],
        "duplicates": dataset.manifest.get("duplicates"),
        "splits": splits,
    }


def table(figures: dict[str, Any]) -> str:
    """Return the figures of `info` as text for a terminal."""
    rows = [("", *figures["splits"])]
    labels = {
        "samples": "samples",
        "shards": "shards",
        "bytes": "size, MB",
        "repaired": "repaired",
        "rejected": "rejected",
        "image_bytes_mean": "bytes per image, mean",
        "width_median": "width, median px",
        "height_median": "height, median px",
        "class_samples_min": "samples per class, min",
        "class_samples_median": "samples per class, median",
        "class_samples_max": "samples per class, max",
        "labels_mean": "classes per sample, mean",
    }
    for key, label in labels.items():
        if any(key not in split for split in figures["splits"].values()):
            continue  # of multi-label datasets only
        scale = 1e6 if key == "bytes" else 1
        digits = {"bytes": 1, "labels_mean": 2}.get(key, 0)
        values = (split[key] / scale for split in figures["splits"].values())
        rows.append((label, *(f"{value:,.{digits}f}" for value in values)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    seed = figures["settings"].get("seed")
    head = f"{figures['path']}: {figures['classes']} classes" + ("" if seed is None else f", seed {seed}")
    if (twice := figures["duplicates"]) and twice["groups"]:
        lines.append(
            f"{twice['groups']:,} images are there more than once ({twice['across_splits']:,} of them in several "
            f"splits, {twice['labels_differ']:,} with different labels): see duplicates.jsonl"
        )
    return "\n".join([head, *lines])
