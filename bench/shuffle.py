"""`python -m bench shuffle`: how well orders mix, read from the readers themselves on a dataset sorted by class."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch

from loader import Loader, Order, PadCrop
from shard.dataset import Dataset, Split
from shard.errors import FeedlineError
from shard.foreign import index_shards
from train.environment import environment

Ids = npt.NDArray[np.int64]
_SIDE = 8  # of the images, pixels: nothing but their order is of interest
_WINDOWS = ((1, 8), (4, 8), (16, 8), (4, 1))  # (shards that a lane mixes, lanes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        samples: of the dataset, which is sorted by class.
        shards: that it is cut into.
        classes: all of the same size.
        buffer: samples in the shuffle buffers of DALI and webdataset.
        batch_size: of the batches that are looked at.
        seed: of all readers.
    """

    samples: int = 20_000
    shards: int = 100
    classes: int = 100
    buffer: int = 1000
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject what cannot be cut."""
        for name, most in (
            ("shards", self.samples // 2),
            ("classes", self.samples),
            ("batch_size", self.samples),
        ):
            if not 1 <= (value := getattr(self, name)) <= most:
                raise FeedlineError(f"--{name.replace('_', '-')} is {value}; it must lie in 1 … {most}")
        for name, least in (("buffer", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise FeedlineError(f"--{name} is {value}; it must be at least {least}")


def shuffle(plan: Plan, folder: Path, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Make the dataset in `folder`, read an epoch of it with every reader, and measure the orders.

    Returns:
        A JSON-able record; `rows` has one row per reader with the figures of `quality`.
    """
    say(f"writing {plan.samples} samples into {plan.shards} shards")
    split = _make_dataset(plan, folder).split("train")
    rows = []
    for reader, read in _readers(plan, folder / "dataset", split).items():
        say(reader)
        ids = read()
        if not np.array_equal(np.sort(ids), np.arange(len(split))):
            raise FeedlineError(f"{reader} did not give every sample once; its order cannot be measured")
        rows.append({"reader": reader, **quality(ids, split.shard, split.label, plan.batch_size)})
    settings = {name: getattr(plan, name) for name in plan.__slots__}
    return {
        "benchmark": "shuffle",
        "environment": environment(torch.device("cpu")),
        "settings": settings,
        "rows": rows,
    }


def quality(
    ids: Ids, shard: npt.NDArray[np.int32], label: npt.NDArray[np.int64], batch_size: int
) -> dict[str, float]:
    """Figures of an epoch's order.

    Args:
        ids: int64 [N], the samples in the order they came in; their numbers are their places in the dataset.
        shard: int32 [N], of every sample by number.
        label: int64 [N], of every sample by number.
        batch_size: samples of a batch; what does not fill a last one is left out.

    Returns:
        displacement: mean distance between a sample's place in the dataset and in the epoch, in epochs. 0: not
            shuffled; 1/3: at random.
        correlation: of the two places (Spearman's).
        kept_neighbours: share of the pairs that follow each other in the epoch and did so in the dataset, either way.
        label_run: mean length of runs of one label.
        same_shard: chance that two samples of a batch come from one shard.
        batch_classes: mean number of classes in a batch.
    """
    n = len(ids)
    place = np.arange(n)
    runs = 1 + np.count_nonzero(np.diff(label[ids]))
    batches = ids[: n - n % batch_size].reshape(-1, batch_size)
    same = [(np.unique(row, return_counts=True)[1] ** 2).sum() - batch_size for row in shard[batches]]
    return {
        "displacement": float(np.abs(place - ids).mean() / n),
        "correlation": float(np.corrcoef(place, ids)[0, 1]),
        "kept_neighbours": float((np.abs(np.diff(ids)) == 1).mean()),
        "label_run": n / runs,
        "same_shard": float(np.mean(same) / max(1, batch_size * (batch_size - 1))),
        "batch_classes": float(np.mean([len(np.unique(row)) for row in label[batches]])),
    }


def table(record: dict[str, Any]) -> str:
    """Markdown table of a record."""
    lines = [
        "| order | displacement | correlation | neighbours kept | label run | same shard | classes in a batch |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['reader']} | {r['displacement']:.3f} | {r['correlation']:.3f} | {r['kept_neighbours']:.2%} | "
        f"{r['label_run']:.2f} | {r['same_shard']:.2%} | {r['batch_classes']:.1f} |"
        for r in record["rows"]
    ]
    return "\n".join(lines)


def _make_dataset(plan: Plan, folder: Path) -> Dataset:
    """Write tars as `tar` makes them of class folders, class after class, and index them."""
    gray = np.full((_SIDE, _SIDE, 3), 128, np.uint8)
    image: bytes = simplejpeg.encode_jpeg(gray, quality=50)
    tars = folder / "tars" / "train"
    tars.mkdir(parents=True)
    for number, ids in enumerate(np.array_split(np.arange(plan.samples), plan.shards)):
        with tarfile.open(tars / f"shard-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in ids.tolist():
                label = i * plan.classes // plan.samples
                for suffix, data in (("jpg", image), ("cls", b"%d" % label), ("id", b"%d" % i)):
                    member = tarfile.TarInfo(f"{i:010d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    index_shards([str(tars)], str(folder / "dataset"), jobs=1)
    return Dataset.open(folder / "dataset")


def _readers(plan: Plan, root: Path, split: Split) -> dict[str, Callable[[], Ids]]:
    """Readers by name; each gives the samples of an epoch in its order."""

    def ours(order: Order) -> Callable[[], Ids]:
        return lambda: _loader(plan, root, order)

    return {
        "sequential": ours(Order()),
        "feedline, global": ours(Order(shuffle="global")),
        **{
            f"feedline, {lanes} lane(s) of {window} shard(s)": ours(
                Order(shuffle="window", window=window, lanes=lanes)
            )
            for window, lanes in _WINDOWS
        },
        f"DALI, buffer of {plan.buffer}": lambda: _dali(plan, split),
        f"webdataset, buffer of {plan.buffer}, shards shuffled": lambda: _webdataset(plan, split),
    }


def _loader(plan: Plan, root: Path, order: Order) -> Ids:
    crop = PadCrop(size=_SIDE, pad=0, hflip=0.0)
    with Loader(root, "train", crop, batch_size=plan.batch_size, shuffle=order, seed=plan.seed) as loader:
        return np.concatenate([batch.ids[: batch.num_valid].numpy() for batch in loader])


def _dali(plan: Plan, split: Split) -> Ids:
    # Only here: DALI has no wheel for some systems.
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    tars = [split.shard_path(i) for i in range(len(split.shards))]
    pipe = Pipeline(
        batch_size=plan.batch_size, num_threads=1, device_id=None, seed=plan.seed, prefetch_queue_depth=1
    )
    with pipe:
        pipe.set_outputs(
            fn.readers.webdataset(
                paths=[str(tar) for tar in tars],
                index_paths=[str(Path(split.root, tar.with_suffix(".idx").name)) for tar in tars],
                ext=["id"],
                missing_component_behavior="error",
                random_shuffle=True,
                initial_fill=plan.buffer,
            )
        )
    pipe.build()
    found: list[int] = []
    while len(found) < len(split):
        (texts,) = pipe.run()
        found += [int(texts.at(row).tobytes()) for row in range(len(texts))]
    return np.array(found[: len(split)], np.int64)  # the last batch goes on in the next epoch


def _webdataset(plan: Plan, split: Split) -> Ids:
    import webdataset

    urls = [str(split.shard_path(i)) for i in range(len(split.shards))]
    samples: Iterator[dict[str, bytes]] = iter(
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=plan.seed, detshuffle=True).shuffle(
            plan.buffer, rng=random.Random(plan.seed)
        )
    )
    return np.array([int(sample["id"]) for sample in samples], np.int64)
