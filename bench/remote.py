"""`python -m bench remote`: how long a training loop waits for data that come from an object store.

The dataset is served by a slow server on this machine (`bench.slow_server`), or read from a URL. A small model trains
on it, with a cache that may be smaller than the dataset, and beside it the same loop on the local files, so that what
the store costs is told apart from what decoding on the same cores costs.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch

from bench.intervals import median_interval
from bench.options import require_positive
from bench.slow_server import SlowServer
from loader import Loader, Order, RandomResizedCrop, ShardCache
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.environment import environment


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePlan:
    """What to measure.

    Attributes:
        data: local dataset, to be served and as the comparison.
        url: the same dataset in a store; None: serve it.
        latency_s: of the server, before each answer.
        mb_per_s: 10**6 bytes a second of the server, all transfers together.
        cache_share: size of the cache, as a share of the split.
        epochs: of training.
        model: any timm model.
        size: side of the crops, pixels.
        batch_size: images per step.
        window: shards that a lane mixes.
        lanes: of the order.
        start_steps: of the first epoch, left out as start-up.
        outage_s: how long the server cuts all connections, from the end of the start-up on; 0: it never does.
        repeats: of both, in turn; each from the store begins with an empty cache.
    """

    data: Path
    url: str | None = None
    latency_s: float = 0.08
    mb_per_s: float = 40.0
    cache_share: float = 0.5
    epochs: int = 3
    model: str = "resnet18"
    size: int = 128
    batch_size: int = 16
    window: int = 2
    lanes: int = 2
    start_steps: int = 3
    outage_s: float = 0.0
    repeats: int = 3


def remote(plan: RemotePlan, say: Callable[[str], None]) -> dict[str, Any]:
    """Train from the store and from the disk in turn, and return the record; JSON-able.

    Raises:
        FeedlineError: no such dataset, the cache is too small for the order, or an outage of a store that is not ours.
    """
    _check(plan)
    dataset = Dataset.open(plan.data)
    split = dataset.split("train")
    total, shards = sum(split.shard_bytes), len(split.shards)
    limit = int(plan.cache_share * total)
    found: dict[str, list[dict[str, Any]]] = {"store": [], "disk": []}
    with ExitStack() as stack:
        server = None
        if plan.url is None:
            server = stack.enter_context(
                SlowServer(plan.data, latency_s=plan.latency_s, bytes_per_s=plan.mb_per_s * 1e6)
            )
        for repeat in range(plan.repeats):
            for name in ("store", "disk") if repeat % 2 == 0 else ("disk", "store"):
                say(f"remote: repeat {repeat + 1} of {plan.repeats}, training from the {name}")
                found[name].append(
                    _from_store(plan, server, limit) if name == "store" else _train(plan, plan.data, None)
                )
    fetched = [one["fetched_shards"] for one in found["store"]]
    return {
        "benchmark": "remote",
        "environment": environment(torch.device("cpu")),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(plan).items()},
        "shards": shards,
        "split_bytes": total,
        "cache_limit_bytes": limit,
        "fetched_per_shard_and_epoch": round(median(fetched) / shards / plan.epochs, 3),
        **{name: _figures(runs) for name, runs in found.items()},
        "repeats": found,
    }


def _check(plan: RemotePlan) -> None:
    if plan.url is not None and plan.outage_s:
        raise FeedlineError(
            f"--outage-s is {plan.outage_s:g}, but only the server of this command can be cut off; leave --url out"
        )
    for name, value in (("mb-per-s", plan.mb_per_s), ("cache-share", plan.cache_share)):
        require_positive(value, f"--{name}")
    for name, value in (("latency-s", plan.latency_s), ("outage-s", plan.outage_s)):
        if not 0 <= value < math.inf:
            raise FeedlineError(f"--{name} is {value}; it cannot be negative, nor without end")
    if plan.batch_size < 2:
        raise FeedlineError("--batch-size is 1, of which batch norm may have no variance; give 2 or more")
    if not timm.is_model(plan.model):
        raise FeedlineError(f"--model is {plan.model!r}, which timm does not have; see timm.list_models()")


def _figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median of each figure of the repeats, and the interval that holds it."""
    figures: dict[str, Any] = {}
    for name in ("images_per_s", "wait_share", "first_batch_s"):
        one = median_interval([run[name] for run in runs])
        figures[name] = one.value
        figures[f"{name}_interval"] = {
            "low": one.low,
            "high": one.high,
            "confidence": round(one.confidence, 4),
        }
    return figures


def _from_store(plan: RemotePlan, server: SlowServer | None, limit: int) -> dict[str, Any]:
    """Train from the store with an empty cache of `limit` bytes."""
    url = plan.url or (server.url if server is not None else "")
    with tempfile.TemporaryDirectory(prefix="feedline-cache-", ignore_cleanup_errors=True) as folder:
        cache = ShardCache(Path(folder), limit)
        figures = _train(plan, url, cache, partial(_outage, server, plan.outage_s))
        return {**figures, "fetched_shards": cache.fetched}


def _outage(server: SlowServer | None, seconds: float) -> None:
    if server is not None and seconds:
        server.down = True
        timer = threading.Timer(seconds, setattr, (server, "down", False))
        timer.daemon = True  # or Ctrl-C would wait for the end of the outage
        timer.start()


def _train(
    plan: RemotePlan, data: str | Path, cache: ShardCache | None, at_start: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = timm.create_model(plan.model, num_classes=len(Dataset.open(plan.data).classes))
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    order = Order(shuffle="window", window=plan.window, lanes=plan.lanes)
    began = time.perf_counter()
    with Loader(
        data, "train", RandomResizedCrop(size=plan.size), batch_size=plan.batch_size, shuffle=order,
        drop_last=True, cache=cache,
    ) as loader:  # fmt: skip
        first_s, clock_s, waited_s, steps = 0.0, 0.0, 0.0, 0
        for _ in range(plan.epochs):
            for batch in loader:
                first_s = first_s or time.perf_counter() - began
                images = batch.images.permute(0, 3, 1, 2).float().div_(255)
                loss = torch.nn.functional.cross_entropy(model(images), batch.labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
                if steps == plan.start_steps:
                    clock_s, waited_s = time.perf_counter(), loader.wait_s
                    at_start()
        if steps <= plan.start_steps:
            raise FeedlineError(
                f"{plan.epochs} epochs have {steps} steps, of which the first {plan.start_steps} do not count; raise "
                "--epochs or lower --batch-size"
            )
        seconds = time.perf_counter() - clock_s
        return {
            "images_per_s": round((steps - plan.start_steps) * plan.batch_size / seconds, 1),
            "wait_share": round((loader.wait_s - waited_s) / seconds, 4),
            "first_batch_s": round(first_s, 2),
        }


def table(record: dict[str, Any]) -> str:
    """The record as lines for people."""
    plan = record["settings"]
    lines = [
        f"{plan['model']} at {plan['size']} px, batch {plan['batch_size']}, {plan['epochs']} epochs; store: "
        + (plan["url"] or f"{plan['latency_s'] * 1000:.0f} ms, {plan['mb_per_s']:g} MB/s")
        + (f", cut off for {plan['outage_s']:g} s" if plan["outage_s"] else "")
        + f"; cache {plan['cache_share']:g} × the split; medians of {plan['repeats']}",
        f"{'':8s}{'images/s':>10s}{'wait share':>12s}{'interval':>18s}{'first batch':>13s}",
    ]
    for name in ("store", "disk"):
        one = record[name]
        waits = one["wait_share_interval"]
        lines.append(
            f"{name:8s}{one['images_per_s']:10.1f}{one['wait_share']:12.2%}"
            f"{waits['low']:>9.2%} – {waits['high']:.2%}{one['first_batch_s']:11.2f} s"
        )
    lines.append(f"each shard was fetched {record['fetched_per_shard_and_epoch']:g} times an epoch")
    return "\n".join(lines)
