"""The one idea: ids, parameters and pixels do not depend on ranks, batch size, threads, or where a run was resumed."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader import Compose, Loader, Order, RandomErasing, RandomResizedCrop, ThreeAugment, parse_policy
from shard.dataset import Dataset

ERASING = RandomErasing(probability=0.5)
# DALI builds a graph for each loader: fewer operations, fewer seconds.
TRANSFORMS = {
    "torch": Compose(
        RandomResizedCrop(size=24), (parse_policy("rand-m9-mstd0.5-inc1"), ThreeAugment()), ERASING
    ),
    "dali": Compose(RandomResizedCrop(size=24), (ThreeAugment(),), ERASING),
}
ORDERS = {
    "global": Order(shuffle="global"),
    "window": Order(shuffle="window", window=2, lanes=4),
    "repeated": Order(shuffle="global", repeats=3),
}
EPOCH = 5
Seen = list[tuple[int, bytes]]  # id and pixels, in the order of a rank


def run(
    dataset: Dataset,
    backend: str,
    order: str,
    start: int,
    world: int,
    batch_size: int,
    threads: int,
    steps: int,
) -> list[Seen]:
    """Global batches: `steps` of them from `start` on, as sorted lists of (id, pixels)."""
    found: list[Seen] = [[] for _ in range(steps)]
    for rank in range(world):
        with Loader(
            dataset, "train", TRANSFORMS[backend], batch_size=batch_size, shuffle=ORDERS[order], seed=3, rank=rank,
            world_size=world, backend=backend, threads=threads,
        ) as loader:  # fmt: skip
            loader.load_state_dict(loader.state_dict() | {"epoch": EPOCH, "samples_consumed": start})
            for step, batch in zip(range(steps), loader, strict=False):
                for row in range(batch.num_valid):
                    found[step].append((int(batch.ids[row]), batch.images[row].numpy().tobytes()))
    return [sorted(one) for one in found]


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_nothing_depends_on_how_an_epoch_is_divided(dataset: Dataset, backend: str) -> None:
    @cache
    def undisturbed(order: str) -> Seen:
        """The whole epoch, one sample a batch; so that nothing mixes what belongs together."""
        return [sample for (sample,) in run(dataset, backend, order, 0, 1, 1, 1, 63)]

    @settings(max_examples=25 if backend == "torch" else 8)
    @given(
        order=st.sampled_from(sorted(ORDERS)),
        world=st.sampled_from([1, 2, 4, 8]),
        batch_size=st.integers(1, 9),
        threads=st.integers(1, 3),
        start=st.integers(0, 62),
        steps=st.integers(1, 3),
    )
    def law(order: str, world: int, batch_size: int, threads: int, start: int, steps: int) -> None:
        left = undisturbed(order)[start:]
        found = run(dataset, backend, order, start, world, batch_size, threads, steps)
        size = world * batch_size
        assert found == [sorted(left[step * size : (step + 1) * size]) for step in range(steps)]

    law()
