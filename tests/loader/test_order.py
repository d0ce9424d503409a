"""Laws of the order: every sample once, equal steps, resume at any world size."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loader.order import epoch_order, num_steps, rank_ids

SIZES = st.integers(1, 400)
WORLDS = st.sampled_from([1, 2, 3, 4, 7, 8])
BATCHES = st.integers(1, 33)


def consume(order: np.ndarray, consumed: int, batch: int, world: int, *, drop_last: bool) -> list[list[int]]:
    """Global batches from `consumed` on: one list of ids a step, gathered from all ranks."""
    steps = num_steps(len(order), consumed, batch * world, drop_last=drop_last)
    return [
        [i for r in range(world) for i in rank_ids(order, consumed, step, batch, r, world).tolist()]
        for step in range(steps)
    ]


@given(n=SIZES, seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_an_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(n, seed, epoch, shuffle=True).tolist()) == list(range(n))
    assert epoch_order(n, seed, epoch, shuffle=False).tolist() == list(range(n))


@given(n=st.integers(50, 400), seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_epochs_and_seeds_differ(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch, shuffle=True).tolist()
    assert order != epoch_order(n, seed, epoch + 1, shuffle=True).tolist()
    assert order != epoch_order(n, seed + 1, epoch, shuffle=True).tolist()
    assert order == epoch_order(n, seed, epoch, shuffle=True).tolist()


@given(n=SIZES, batch=BATCHES, world=WORLDS)
def test_union_over_ranks_is_the_epoch_without_repeats(n: int, batch: int, world: int) -> None:
    order = epoch_order(n, 0, 0, shuffle=True)
    seen = [i for step in consume(order, 0, batch, world, drop_last=False) for i in step]
    assert len(seen) == n
    assert sorted(seen) == list(range(n))


@given(n=SIZES, batch=BATCHES, world=WORLDS)
def test_drop_last_gives_only_full_batches(n: int, batch: int, world: int) -> None:
    order = epoch_order(n, 0, 0, shuffle=True)
    steps = consume(order, 0, batch, world, drop_last=True)
    assert len(steps) == n // (batch * world)
    assert all(len(step) == len(set(step)) == batch * world for step in steps)
    assert sorted(i for step in steps for i in step) == sorted(order[: len(steps) * batch * world].tolist())


@given(n=SIZES, batch=BATCHES, world=WORLDS, data=st.data())
def test_another_world_size_continues_with_exactly_the_samples_left(
    n: int, batch: int, world: int, data: st.DataObject
) -> None:
    order = epoch_order(n, 1, 2, shuffle=True)
    before = consume(order, 0, batch, world, drop_last=False)
    done = data.draw(st.integers(0, len(before)), label="steps before the resume")
    new_batch, new_world = data.draw(BATCHES, label="new batch"), data.draw(WORLDS, label="new world")
    seen = [i for step in before[:done] for i in step]
    consumed = min(done * batch * world, n)
    left = [i for step in consume(order, consumed, new_batch, new_world, drop_last=False) for i in step]
    assert sorted(seen + left) == list(range(n))


@given(n=SIZES, batch=st.integers(1, 8), factor=WORLDS, worlds=st.permutations([1, 2, 4, 8]))
def test_a_global_batch_depends_on_its_size_only(n: int, batch: int, factor: int, worlds: list[int]) -> None:
    order = epoch_order(n, 5, 0, shuffle=True)
    total = batch * 8 * factor
    cuts = [[sorted(s) for s in consume(order, 0, total // w, w, drop_last=False)] for w in worlds]
    assert all(cut == cuts[0] for cut in cuts)


def test_shuffle_is_global_not_local() -> None:
    order = epoch_order(10_000, 0, 0, shuffle=True)
    displacement = np.abs(order - np.arange(10_000)).mean() / 10_000
    assert 0.32 < displacement < 0.345  # 1/3 for a uniform permutation
