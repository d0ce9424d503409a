"""Laws of the plan."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shard.plan import Settings, fingerprint, plan
from shard.source import Item, Source

SIZES = st.lists(st.integers(0, 5000), min_size=1, max_size=60)


def source(sizes: list[int]) -> Source:
    items = [Item(f"c/{i}.jpg", i % 3, size, 7) for i, size in enumerate(sizes)]
    return Source(Path("x"), ("a", "b", "c"), {"train": items}, {"train": []})


@given(sizes=SIZES, shard_bytes=st.integers(1, 40_000), seed=st.integers(0, 9))
def test_every_item_once_in_shards_within_bounds(sizes: list[int], shard_bytes: int, seed: int) -> None:
    jobs = plan(source(sizes), Settings(seed=seed, shard_bytes=shard_bytes))
    paths = [item.path for job in jobs for item in job.items]
    assert sorted(paths) == sorted(f"c/{i}.jpg" for i in range(len(sizes)))
    assert [job.number for job in jobs] == list(range(len(jobs)))
    assert [job.first_key for job in jobs] == [sum(len(j.items) for j in jobs[:i]) for i in range(len(jobs))]
    for job in jobs:
        assert len(job.items) == 1 or sum(item.size_bytes for item in job.items) <= shard_bytes


@given(sizes=SIZES, order=st.randoms(use_true_random=False), seed=st.integers(0, 9))
def test_the_order_of_scanning_does_not_matter(sizes: list[int], order: object, seed: int) -> None:
    straight, mixed = source(sizes), source(sizes)
    order.shuffle(mixed.items["train"])  # type: ignore[attr-defined]
    settings = Settings(seed=seed, shard_bytes=9000)
    assert plan(straight, settings) == plan(mixed, settings)
    assert fingerprint(straight, settings, times=True) == fingerprint(mixed, settings, times=True)


@given(sizes=SIZES, extra=st.integers(0, 5000))
def test_one_more_file_moves_no_others_relative_to_each_other(sizes: list[int], extra: int) -> None:
    def order(sizes: list[int]) -> list[str]:
        return [item.path for job in plan(source(sizes), Settings()) for item in job.items]

    new = f"c/{len(sizes)}.jpg"
    assert [path for path in order([*sizes, extra]) if path != new] == order(sizes)


def test_the_plan_is_identified_by_everything_that_decides_it() -> None:
    base = source([10, 20, 30])
    changed = [
        (base, Settings(seed=1)),
        (base, Settings(shard_bytes=1)),
        (source([10, 20, 31]), Settings()),
        (Source(base.root, ("a", "b", "d"), base.items, base.ignored), Settings()),
        (Source(base.root, base.classes, base.items, {"train": ["x.txt"]}), Settings()),
    ]
    prints = {fingerprint(s, settings, times=False) for s, settings in [(base, Settings()), *changed]}
    assert len(prints) == 6
    later = Source(
        base.root,
        base.classes,
        {"train": [Item(i.path, i.label, i.size_bytes, 8) for i in base.items["train"]]},
        base.ignored,
    )
    assert fingerprint(later, Settings(), times=False) == fingerprint(base, Settings(), times=False)
    assert fingerprint(later, Settings(), times=True) != fingerprint(base, Settings(), times=True)


def test_the_order_is_pinned() -> None:
    """Part of the format: the same on every machine and in every version."""
    (job,) = plan(source([1] * 8), Settings(seed=3))
    assert [int(item.path[2]) for item in job.items] == [5, 1, 3, 7, 4, 0, 2, 6]
