"""Laws of the order: every sample once, equal steps, resume at any world size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.order import Order, num_steps
from shard.errors import FeedlineError

SIZES = st.integers(1, 400)
WORLDS = st.sampled_from([1, 2, 3, 4, 7, 8])
BATCHES = st.integers(1, 33)
GLOBAL = Order(shuffle="global")
ORDERS = st.one_of(
    st.just(GLOBAL),
    st.builds(
        Order, shuffle=st.just("window"), window=st.integers(1, 5), lanes=st.sampled_from([1, 2, 4, 8])
    ),
)


def shards(n: int, size: int = 7) -> np.ndarray:
    """Shard numbers of n samples, about `size` to a shard."""
    return (np.arange(n) // size).astype(np.int32)


def consume(
    order: Order, n: int, consumed: int, batch: int, world: int, *, drop_last: bool
) -> list[list[int]]:
    """Global batches from `consumed` on: one list of ids a step, gathered from all ranks."""
    draws = order.draws(shards(n), 5, 2)
    steps = num_steps(n, consumed, batch * world, drop_last=drop_last)
    found = []
    for step in range(steps):
        parts = [order.rank_positions(n, consumed, step, batch, rank, world) for rank in range(world)]
        assert all(len(part) <= batch for part in parts)
        found.append([i for part in parts for i in (draws[part] % n).tolist()])
    return found


@given(order=ORDERS, n=SIZES, seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_an_epoch_is_a_permutation(order: Order, n: int, seed: int, epoch: int) -> None:
    assert sorted(order.draws(shards(n), seed, epoch).tolist()) == list(range(n))
    assert Order().draws(shards(n), seed, epoch).tolist() == list(range(n))


@given(order=ORDERS, n=st.integers(50, 400), seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_epochs_and_seeds_differ(order: Order, n: int, seed: int, epoch: int) -> None:
    draws = order.draws(shards(n), seed, epoch).tolist()
    assert draws != order.draws(shards(n), seed, epoch + 1).tolist()
    assert draws != order.draws(shards(n), seed + 1, epoch).tolist()
    assert draws == order.draws(shards(n), seed, epoch).tolist()


@given(order=ORDERS, n=SIZES, batch=BATCHES, world=WORLDS)
def test_union_over_ranks_is_the_epoch_without_repeats(order: Order, n: int, batch: int, world: int) -> None:
    seen = [i for step in consume(order, n, 0, batch, world, drop_last=False) for i in step]
    assert len(seen) == n
    assert sorted(seen) == list(range(n))


@given(order=ORDERS, n=SIZES, batch=BATCHES, world=WORLDS)
def test_drop_last_gives_only_full_batches(order: Order, n: int, batch: int, world: int) -> None:
    steps = consume(order, n, 0, batch, world, drop_last=True)
    assert len(steps) == n // (batch * world)
    assert all(len(step) == len(set(step)) == batch * world for step in steps)
    draws = order.draws(shards(n), 5, 2)
    assert sorted(i for step in steps for i in step) == sorted(draws[: len(steps) * batch * world].tolist())


@given(order=ORDERS, n=SIZES, batch=BATCHES, world=WORLDS, data=st.data())
def test_another_world_size_continues_with_exactly_the_samples_left(
    order: Order, n: int, batch: int, world: int, data: st.DataObject
) -> None:
    before = consume(order, n, 0, batch, world, drop_last=False)
    done = data.draw(st.integers(0, len(before)), label="steps before the resume")
    new_batch, new_world = data.draw(BATCHES, label="new batch"), data.draw(WORLDS, label="new world")
    seen = [i for step in before[:done] for i in step]
    consumed = min(done * batch * world, n)
    left = [i for step in consume(order, n, consumed, new_batch, new_world, drop_last=False) for i in step]
    assert sorted(seen + left) == list(range(n))


@given(order=ORDERS, n=SIZES, batch=st.integers(1, 8), factor=WORLDS, worlds=st.permutations([1, 2, 4, 8]))
def test_a_global_batch_depends_on_its_size_only(
    order: Order, n: int, batch: int, factor: int, worlds: list[int]
) -> None:
    total = batch * 8 * factor
    cuts = [[sorted(s) for s in consume(order, n, 0, total // w, w, drop_last=False)] for w in worlds]
    assert all(cut == cuts[0] for cut in cuts)


def displacement(order: Order, n: int) -> float:
    """Mean distance between a sample's place in the index and in the epoch, as a share of the epoch."""
    return float(np.abs(order.draws(shards(n, 100), 0, 0) - np.arange(n)).mean() / n)


def test_shuffles_are_global() -> None:
    """1/3 for a uniform permutation; a window moves whole shards anywhere."""
    assert 0.32 < displacement(GLOBAL, 10_000) < 0.345
    assert 0.28 < displacement(Order(shuffle="window", window=2, lanes=4), 10_000) < 0.38


@given(window=st.integers(1, 4), lanes=st.sampled_from([1, 2, 4]), epoch=st.integers(0, 50))
def test_a_lane_mixes_no_more_shards_than_its_window(window: int, lanes: int, epoch: int) -> None:
    n = 480
    draws = Order(shuffle="window", window=window, lanes=lanes).draws(shards(n, 20), 0, epoch)
    for lane in range(lanes):
        shard = draws[lane::lanes] // 20
        live: dict[int, list[int]] = {}
        for position, number in enumerate(shard.tolist()):
            live.setdefault(number, []).append(position)
        for position in range(len(shard)):
            assert sum(at[0] <= position <= at[-1] for at in live.values()) <= window


@pytest.mark.parametrize("world", [2, 4, 8, 16])
def test_ranks_read_lanes_of_their_own(world: int) -> None:
    """A rank meets its share of the shards, and those at the borders of its lanes."""
    n, order = 3200, Order(shuffle="window", window=2, lanes=8)
    draws, batch = order.draws(shards(n, 40), 0, 0), 8
    for rank in range(world):
        met = set()
        for step in range(n // (batch * world)):
            ids = draws[order.rank_positions(n, 0, step, batch, rank, world)]
            assert len(ids) == batch
            met |= set((ids // 40).tolist())
        assert len(met) <= 80 // min(world, 8) + 2


def test_repeats_come_together_and_are_told_apart() -> None:
    n = 30
    for order in (Order(shuffle="global", repeats=3), Order(shuffle="window", window=2, lanes=2, repeats=3)):
        draws = order.draws(shards(n), 0, 0)
        assert len(set(draws.tolist())) == n
        samples, counts = np.unique(draws % n, return_counts=True)
        assert counts.tolist() == [3] * 10
        for sample in samples:
            places = np.flatnonzero(draws % n == sample)
            assert np.ptp(places) <= 4
            assert (draws[places] // n).tolist() == [0, 1, 2]


@pytest.mark.parametrize("wrong", [{"shuffle": "buffer"}, {"window": 0}, {"lanes": 0}, {"repeats": 0}])
def test_wrong_orders_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(FeedlineError, match=next(iter(wrong))):
        Order(**wrong)  # type: ignore[arg-type]


LABELS = st.lists(st.integers(1, 60), min_size=2, max_size=8).map(
    lambda counts: np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
)
BALANCES = st.sampled_from([0.25, 0.5, 1.0])


@given(label=LABELS, balance=BALANCES, seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_a_balanced_epoch_holds_each_class_by_its_share_and_no_sample_more_than_others(
    label: np.ndarray, balance: float, seed: int, epoch: int
) -> None:
    n, order = len(label), Order(shuffle="global", balance=balance)
    draws = order.draws(shards(n), seed, epoch, label)
    assert len(draws) == n == len(set(draws.tolist()))
    sizes = np.bincount(label)
    wanted = n * sizes ** (1 - balance) / (sizes ** (1 - balance)).sum()
    assert (np.abs(np.bincount(label[draws % n], minlength=len(sizes)) - wanted) < 1).all()
    times = np.bincount(draws % n, minlength=n)
    for c in range(len(sizes)):
        assert np.ptp(times[label == c]) <= 1
    # Repetitions of a sample are numbered from 0: each is augmented in its own way.
    assert sorted(draws.tolist()) == sorted(i + r * n for i in range(n) for r in range(times[i]))
    assert draws.tolist() == order.draws(shards(n), seed, epoch, label).tolist()


@given(
    label=LABELS.filter(lambda label: len(label) > 40),
    balance=BALANCES,
    batch=st.integers(1, 4),
    worlds=st.permutations([1, 2, 4]),
    data=st.data(),
)
def test_a_balanced_epoch_is_the_same_sequence_on_any_number_of_ranks_and_after_any_resume(
    label: np.ndarray, balance: float, batch: int, worlds: list[int], data: st.DataObject
) -> None:
    n, order, total = len(label), Order(shuffle="global", balance=balance), batch * 4
    draws = order.draws(shards(n), 3, 1, label)
    done = data.draw(st.integers(0, n // total), label="steps before the resume") * total
    for world in worlds:
        left = []
        for step in range(num_steps(n, done, total, drop_last=False)):
            ranks = [order.rank_positions(n, done, step, total // world, r, world) for r in range(world)]
            left += sorted(p for part in ranks for p in part.tolist())
        assert left == list(range(done, n))
        assert draws[left].tolist() == draws[done:].tolist()


def test_over_the_epochs_quotas_are_right_and_every_sample_has_its_turn() -> None:
    label = np.repeat([0, 1, 2], [100, 30, 7])
    order = Order(shuffle="global", balance=0.5)
    epochs = [order.draws(shards(137), 0, epoch, label) % 137 for epoch in range(400)]
    counts = np.mean([np.bincount(label[ids], minlength=3) for ids in epochs], axis=0)
    wanted = 137 * np.sqrt([100, 30, 7]) / np.sqrt([100, 30, 7]).sum()
    np.testing.assert_allclose(counts, wanted, atol=0.1)
    times = np.bincount(np.concatenate(epochs), minlength=137) / 400
    np.testing.assert_allclose(times, (wanted / [100, 30, 7])[label], rtol=0.25)


def test_balance_needs_what_it_needs() -> None:
    for more in ({"shuffle": "window"}, {"shuffle": "none"}, {"shuffle": "global", "repeats": 2}):
        with pytest.raises(
            FeedlineError, match=r"balance is 0\.5, which needs shuffle 'global' and repeats 1"
        ):
            Order(balance=0.5, **more)  # type: ignore[arg-type]
    with pytest.raises(FeedlineError, match="balance is 2; it must lie in 0 … 1"):
        Order(shuffle="global", balance=2)
    with pytest.raises(FeedlineError, match="needs the samples' labels"):
        Order(shuffle="global", balance=0.5).draws(shards(3), 0, 0)
