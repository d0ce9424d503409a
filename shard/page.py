"""Pictures and a page that show what a dataset holds."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shard.dataset import Dataset, Split, read_image
from shard.errors import FeedlineError
from shard.info import table
from shard.plan import hash_order_of
from shard.storage import write_whole

_THUMBNAIL = 112  # pixels, the longer side
_MOST_THUMBNAILS, _MOST_PER_CLASS = 1000, 6
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #1b1f24 }
pre { background: #f4f5f7; padding: 1rem; overflow-x: auto }
figure { margin: 1.5rem 0 } figure img { max-width: 100% } figcaption { color: #555 }
.class { display: flex; gap: 8px; align-items: center; border-top: 1px solid #e3e5e8; padding: 6px 0; flex-wrap: wrap }
.class b { width: 15rem; font-weight: 600; overflow-wrap: anywhere } .class small { color: #666; font-weight: 400 }
"""


def write_page(dataset: Dataset, figures: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write classes.png, sizes.png, bytes.png and info.html (self-contained) into `folder`.

    Args:
        dataset: what to show.
        figures: of `shard.info.info`.
        folder: made if missing.

    Returns:
        The files.

    Raises:
        FeedlineError: matplotlib is not installed, or a file cannot be written.
    """
    root = Path(folder)
    splits = {name: dataset.split(name) for name in dataset.split_names}
    pictures = {
        "classes": (
            "Samples per class, classes in descending order",
            _figure(_draw_classes, splits, dataset),
        ),
        "sizes": ("Width and height, pixels", _figure(_draw_sizes, splits, dataset)),
        "bytes": ("Encoded bytes per image", _figure(_draw_bytes, splits, dataset)),
    }
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FeedlineError(f"cannot make {root}: {error.strerror}") from error
    files = {f"{name}.png": data for name, (_, data) in pictures.items()}
    files["info.html"] = _page(dataset, figures, splits, pictures).encode()
    for name, data in files.items():
        with write_whole(root / name, root) as file:
            file.write(data)
    return [root / name for name in files]


def _page(
    dataset: Dataset,
    figures: dict[str, Any],
    splits: dict[str, Split],
    pictures: dict[str, tuple[str, bytes]],
) -> str:
    title = html.escape(f"Dataset {figures['path']}")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1><pre>{html.escape(table(figures))}</pre>",
    ]
    for caption, data in pictures.values():
        encoded = base64.b64encode(data).decode()
        parts.append(
            f'<figure><img src="data:image/png;base64,{encoded}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    first = next(iter(splits.values()))
    shown = min(len(dataset.classes), _MOST_THUMBNAILS)
    parts.append(f"<h2>Random images of split {html.escape(first.name)}</h2>")
    if shown < len(dataset.classes):
        parts.append(f"<p>The first {shown:,} of {len(dataset.classes):,} classes.</p>")
    parts += _sheet(dataset, first, shown)
    return "\n".join(parts) + "\n"


def _sheet(dataset: Dataset, split: Split, shown: int) -> Iterator[str]:
    each = max(1, min(_MOST_PER_CLASS, _MOST_THUMBNAILS // shown))
    # Random, but the same on every run: in the order of a hash of the key.
    order = hash_order_of(split.keys, "sheet\0")
    by_class = split.by_class(order, len(dataset.classes))
    readable = dataset.manifest.get("class_names") or [""] * len(dataset.classes)
    for label in range(shown):
        mine = by_class[label]
        images = "".join(_thumbnail(read_image(split, int(i)), split.key(int(i))) for i in mine[:each])
        name = html.escape(dataset.classes[label])
        facts = [readable[label], f"label {label}", f"{len(mine):,} sample{'' if len(mine) == 1 else 's'}"]
        about = html.escape(" · ".join(fact for fact in facts if fact))
        yield f"<div class=class><b>{name}<br><small>{about}</small></b>{images}</div>"


def _thumbnail(data: bytes, key: str) -> str:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
        small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    name = html.escape(key, quote=True)
    return f'<img src="data:image/jpeg;base64,{encoded}" title="{name}" alt="{name}">'


def _figure(
    draw: Callable[[Any, dict[str, Split], Dataset], None], splits: dict[str, Split], dataset: Dataset
) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FeedlineError("pictures need matplotlib: install feedline[plot]") from error
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    draw(figure, splits, dataset)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_classes(figure: Any, splits: dict[str, Split], dataset: Dataset) -> None:
    axes = figure.subplots()
    for name, split in splits.items():
        counts = np.sort(split.class_counts(len(dataset.classes)))[::-1]
        axes.step(np.arange(len(counts) + 1), np.append(counts, counts[-1]), where="post", label=name)
    axes.set(xlabel="classes", ylabel="samples", ylim=(0, None), xlim=(0, len(dataset.classes)))
    axes.legend()


def _draw_sizes(figure: Any, splits: dict[str, Split], dataset: Dataset) -> None:
    for axes, side in zip(figure.subplots(1, 2, sharey=True), ("width", "height"), strict=True):
        for name, split in splits.items():
            _histogram(axes, getattr(split, side), name)
        axes.set(xlabel=f"{side}, pixels", ylabel="share of images" if side == "width" else "")
        axes.legend()


def _draw_bytes(figure: Any, splits: dict[str, Split], dataset: Dataset) -> None:
    axes = figure.subplots()
    for name, split in splits.items():
        _histogram(axes, split.size / 1000, name)
    axes.set(xlabel="kB per image", ylabel="share of images")
    axes.legend()


def _histogram(axes: Any, values: Any, name: str) -> None:
    """Shares over 60 bins up to the 99.5th percentile; what lies beyond counts into the last."""
    high = max(float(np.percentile(values, 99.5)), float(values.min()) + 1)
    clipped = np.minimum(values, high)
    axes.hist(clipped, bins=60, weights=np.full(len(values), 1 / len(values)), alpha=0.6, label=name)
