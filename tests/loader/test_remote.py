"""Datasets behind URLs: what comes out is what a disk gives, whatever the store does meanwhile."""

import fcntl
import logging
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.slow_server import SlowServer
from loader import Batch, Loader, Order, RandomResizedCrop, ShardCache
from loader.uses import peak_bytes, uses
from shard.build import build
from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.foreign import index_shards
from shard.plan import Settings

CROP = RandomResizedCrop(size=24)
WINDOW = Order(shuffle="window", window=1, lanes=2)


@pytest.fixture(scope="module")
def many(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The images in some twenty small shards."""
    root = tmp_path_factory.mktemp("many") / "data"
    build(images, root, Settings(shard_bytes=16_000), workers=1)
    return Dataset.open(root)


@pytest.fixture
def server(many: Dataset) -> Iterator[SlowServer]:
    with SlowServer(many.root) as running:
        yield running


def limit(dataset: Dataset, share: float) -> int:
    return int(share * sum(dataset.split("train").shard_bytes))


def used_bytes(folder: Path) -> int:
    """Size of the complete shards in a cache, while others remove some."""
    total = 0
    for path in folder.glob("*.tar"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def contents(batches: list[Batch]) -> list[tuple[list[int], list[int], int]]:
    return [(b.ids.tolist(), b.labels.tolist(), int(b.images.long().sum())) for b in batches]


@pytest.mark.parametrize("order", [Order(shuffle="global"), WINDOW, Order()])
def test_a_store_gives_what_a_disk_gives(
    many: Dataset, server: SlowServer, tmp_path: Path, order: Order
) -> None:
    options = {"batch_size": 8, "shuffle": order}
    with (
        Loader(many, "train", CROP, **options) as near,
        Loader(server.url, "train", CROP, cache=tmp_path, **options) as far,
    ):
        for _ in range(2):
            assert contents(list(far)) == contents(list(near))
    assert all(number == 1 for name, number in server.requests.items() if name.endswith(".tar"))


def test_s3(many: Dataset, s3: str, tmp_path: Path) -> None:
    url = f"{s3}/{uuid.uuid4().hex}"
    fsspec.filesystem("s3").put(str(many.root), url, recursive=True)
    with (
        Loader(many, "train", CROP, batch_size=8, shuffle="window") as near,
        Loader(url, "train", CROP, batch_size=8, shuffle="window", cache=tmp_path) as far,
    ):
        assert contents(list(far)) == contents(list(near))


def test_a_small_cache_fetches_every_shard_once_an_epoch_per_node(
    many: Dataset, server: SlowServer, tmp_path: Path
) -> None:
    """Two nodes of two ranks each, a cache of half the dataset: bounded, complete, nothing fetched twice."""
    room, shards = limit(many, 0.5), many.split("train").shards
    caches = [ShardCache(tmp_path / f"node{i}", room, retry_s=10) for i in range(2)]
    largest = Counter[int]()

    def rank(number: int, found: list[Batch]) -> None:
        with Loader(
            server.url, "train", CROP, batch_size=2, shuffle=Order(shuffle="window", window=1, lanes=4),
            rank=number, world_size=4, local_world_size=2, cache=caches[number // 2],
        ) as loader:  # fmt: skip
            for _ in range(3):
                for batch in loader:
                    found.append(batch)
                    largest[number // 2] = max(largest[number // 2], used_bytes(caches[number // 2].folder))
                    barrier.wait()

    barrier = threading.Barrier(4, timeout=30)
    found: list[list[Batch]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=rank, args=(i, found[i])) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [i for batches in found for batch in batches for i in batch.ids[batch.valid].tolist()]
    assert Counter(ids) == dict.fromkeys(range(63), 3)
    assert max(largest.values()) <= room
    # Of every epoch, and the one that is fetched ahead at the end, a node needs a shard once or not at all.
    split, order = many.split("train"), Order(shuffle="window", window=1, lanes=4)
    needs = Counter[str]()
    for epoch in range(4):
        draws = order.draws(split.shard, 0, epoch)
        for node in range(2):
            ids = [
                draws[order.rank_positions(63, 0, step, 2, rank, 4)]
                for step in range(8)
                for rank in (2 * node, 2 * node + 1)
            ]
            needs.update({shards[i] for i in split.shard[np.concatenate(ids)].tolist()})
    assert all(server.requests[f"train/{name}"] <= needs[name] for name in shards)
    assert all(server.requests[f"train/{name}"] >= 1 for name in shards)


def test_a_failing_look_ahead_does_not_end_the_epoch(
    many: Dataset, server: SlowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = ShardCache.acquire
    fetched, refused = set[str](), threading.Event()

    def once(self: ShardCache, url: str, *about: Any, **options: Any) -> Any:
        if url in fetched:
            refused.set()
            raise FeedlineError("the store is away")
        fetched.add(url)
        return acquire(self, url, *about, **options)

    cache = ShardCache(tmp_path, limit(many, 1.0))  # half of the split at a time
    with Loader(server.url, "train", CROP, batch_size=1, cache=cache) as loader:
        with monkeypatch.context() as patch:
            patch.setattr(ShardCache, "acquire", once)
            batches = iter(loader)
            for _ in range(40):
                next(batches)
            # All that is left has room, but the first shard, with which the next epoch begins, was not kept.
            assert refused.wait(20)
            assert len(list(batches)) == 23
        assert len(list(loader)) == 63


def test_closing_in_a_forked_child_leaves_the_parents_locks(
    many: Dataset, server: SlowServer, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path, retry_s=0.5)
    with Loader(server.url, "train", CROP, batch_size=63, shuffle=True, cache=cache) as loader:
        batches = iter(loader)
        next(batches)
        held = list(loader._shards._held)  # type: ignore[attr-defined]
        assert held
        child = os.fork()
        if not child:  # pragma: no cover  (another process)
            loader.close()
            os._exit(0)
        os.waitpid(child, 0)
        about = many.manifest["splits"]["train"]["shards"][held[0]]
        lock = os.open(tmp_path / f"{about['sha256']}.lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock)


def test_a_cache_too_small_for_the_order_is_refused_at_once(server: SlowServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 100_000)
    with (
        Loader(server.url, "train", CROP, batch_size=8, shuffle="global", cache=cache) as loader,
        pytest.raises(FeedlineError, match=r'limit 100000.* use shuffle="window" with a smaller window'),
    ):
        next(iter(loader))


def test_a_store_that_is_away_for_a_while_is_waited_for(
    many: Dataset, server: SlowServer, tmp_path: Path
) -> None:
    server.bytes_per_s = 300_000
    with Loader(server.url, "train", CROP, batch_size=8, shuffle=WINDOW, cache=tmp_path) as loader:
        batches = iter(loader)
        next(batches)
        server.down = True
        threading.Timer(1.5, lambda: setattr(server, "down", False)).start()
        assert len(list(batches)) == 7


def test_a_store_that_stays_away_is_an_error_that_names_the_shard(server: SlowServer, tmp_path: Path) -> None:
    with Loader(
        server.url, "train", CROP, batch_size=8, shuffle=WINDOW, cache=ShardCache(tmp_path, retry_s=0.5)
    ) as loader:
        server.down = True
        with pytest.raises(FeedlineError, match=r"dataset.json|shard-0000\d\d.tar"):
            next(iter(loader))


def test_a_damaged_object_is_fetched_again_then_an_error(
    many: Dataset, server: SlowServer, tmp_path: Path
) -> None:
    server.corrupt["train/shard-000001.tar"] = 2
    with Loader(server.url, "train", CROP, batch_size=8, shuffle=WINDOW, cache=tmp_path / "a") as loader:
        assert sum(batch.num_valid for batch in loader) == 63
    assert server.requests["train/shard-000001.tar"] == 3
    server.corrupt["train/shard-000001.tar"] = 99
    with (
        Loader(server.url, "train", CROP, batch_size=8, shuffle=WINDOW, cache=tmp_path / "b") as loader,
        pytest.raises(
            FeedlineError, match=r"shard-000001.tar has .* dataset.json says SHA-256 .* upload it again"
        ),
    ):
        list(loader)


def test_leaving_early_and_moving_hold_no_shard_and_no_thread(
    many: Dataset, server: SlowServer, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path, limit(many, 0.5), retry_s=5)
    with Loader(server.url, "train", CROP, batch_size=8, shuffle=WINDOW, cache=cache) as loader:
        for epoch in (0, 3, 1, 7, 2):
            loader.set_epoch(epoch)
            next(iter(loader))
        loader.set_epoch(5)
        assert sorted(i for batch in loader for i in batch.ids[batch.valid].tolist()) == list(range(63))
    assert not [t for t in threading.enumerate() if t.name.startswith("feedline")]
    for name in many.split("train").shards:  # nothing is locked any more: everything can be had at once
        about = next(s for s in many.manifest["splits"]["train"]["shards"] if s["name"] == name)
        cache.acquire(f"{server.url}/train/{name}", about["bytes"], about["sha256"]).release()


def test_the_first_batch_of_a_global_shuffle_warns(
    server: SlowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "feedline.loader"),
        Loader(server.url, "train", CROP, batch_size=63, shuffle="global", cache=tmp_path) as loader,
    ):
        next(iter(loader))
    assert "shuffle='window' starts sooner" in caplog.text


SPLIT: Any = SimpleNamespace(shard=np.arange(63) // 5, shard_bytes=tuple(range(100, 113)))


@given(steps=st.lists(st.lists(st.integers(0, 62), min_size=1, max_size=5), max_size=12))
def test_the_plan_holds_every_shard_from_its_first_to_its_last_step(steps: list[list[int]]) -> None:
    plan = uses(SPLIT, [np.array(step) for step in steps])
    sets = [set(SPLIT.shard[np.array(step)].tolist()) for step in steps]
    for shard, first, last in plan:
        assert shard in sets[first]
        assert shard in sets[last]
        assert not any(shard in sets[step] for step in (*range(first), *range(last + 1, len(sets))))
    assert {use.shard for use in plan} == set().union(*sets)
    assert [use.first for use in plan] == sorted(use.first for use in plan)
    held = [
        sum(SPLIT.shard_bytes[u.shard] for u in plan if u.first <= s <= u.last) for s in range(len(steps))
    ]
    assert peak_bytes(SPLIT, plan) == max(held, default=0)


def test_foreign_shards_indexed_where_they_are(many: Dataset, server: SlowServer, tmp_path: Path) -> None:
    urls = [f"{server.url}/train/{name}" for name in many.split("train").shards]
    index_shards(urls, tmp_path / "index", jobs=1)
    with (
        Loader(many, "train", CROP, batch_size=8, shuffle=True) as near,
        Loader(
            tmp_path / "index", "train", CROP, batch_size=8, shuffle=True, cache=tmp_path / "cache"
        ) as far,
    ):
        assert contents(list(far)) == contents(list(near))
