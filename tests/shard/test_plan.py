"""Laws of the plan."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.errors import FeedlineError
from shard.items import FileReader, Item, Listing, table
from shard.plan import Settings, ShardJob, Subset, all_jobs, fingerprint, plan, take_subset
from shard.sources import Source

SIZES = st.lists(st.integers(0, 5000), min_size=1, max_size=60)


def listing(
    sizes: list[int], order: list[int] | None = None, mtime_ns: int = 7, classes: str = "abc"
) -> Listing:
    order = list(range(len(sizes))) if order is None else order
    rows = table(
        [f"c/{i}.jpg".encode() for i in order],
        [i % 3 for i in order],
        [sizes[i] for i in order],
        mtimes_ns=mtime_ns,
    )
    return Listing(kind="folders", classes=tuple(classes), splits={"train": rows}, reader=FileReader("x"))


def jobs(listed: Listing, settings: Settings) -> list[ShardJob]:
    return [one.job(number) for one, number in all_jobs(plan(listed, settings))]


def identity(listed: Listing, settings: Settings, *, times: bool) -> str:
    source = Source(root="x", kind="folders", classes=None, splits=None, listed=listed)
    return fingerprint(source.stamp(times=times), settings)


@given(sizes=SIZES, shard_bytes=st.integers(1, 40_000), seed=st.integers(0, 9))
def test_every_item_once_in_shards_within_bounds(sizes: list[int], shard_bytes: int, seed: int) -> None:
    planned = jobs(listing(sizes), Settings(seed=seed, shard_bytes=shard_bytes))
    items = [item for job in planned for item in job.items]
    assert sorted(items) == sorted(Item(f"c/{i}.jpg", i % 3, -1, 0, size) for i, size in enumerate(sizes))
    assert [job.number for job in planned] == list(range(len(planned)))
    counts = [len(job.items) for job in planned]
    assert [job.first_key for job in planned] == [sum(counts[:i]) for i in range(len(planned))]
    for job, following in zip(planned, [*planned[1:], None], strict=True):
        used = sum(item.size + 3072 for item in job.items)
        assert len(job.items) == 1 or used <= shard_bytes
        if following is not None:  # a shard is as full as it can be
            assert used + following.items[0].size + 3072 > shard_bytes


@given(sizes=SIZES, order=st.randoms(use_true_random=False), seed=st.integers(0, 9))
def test_the_order_of_scanning_does_not_matter(sizes: list[int], order: object, seed: int) -> None:
    mixed = list(range(len(sizes)))
    order.shuffle(mixed)  # type: ignore[attr-defined]
    settings = Settings(seed=seed, shard_bytes=9000)
    assert jobs(listing(sizes), settings) == jobs(listing(sizes, mixed), settings)
    straight, shuffled = (identity(listing(sizes, o), settings, times=True) for o in (None, mixed))
    assert straight == shuffled


@given(sizes=SIZES, extra=st.integers(0, 5000))
def test_one_more_file_moves_no_others_relative_to_each_other(sizes: list[int], extra: int) -> None:
    def order(sizes: list[int]) -> list[str]:
        return [item.source for job in jobs(listing(sizes), Settings()) for item in job.items]

    new = f"c/{len(sizes)}.jpg"
    assert [path for path in order([*sizes, extra]) if path != new] == order(sizes)


def test_the_plan_is_identified_by_everything_that_decides_it() -> None:
    base = listing([10, 20, 30])
    ignoring = listing([10, 20, 30])
    ignoring.ignored.append({"source": "x.txt", "split": "train", "reason": "text"})
    changed = [
        (base, Settings()),
        (base, Settings(seed=1)),
        (base, Settings(shard_bytes=1)),
        (base, Settings(subset=Subset(per_class=1))),
        (base, Settings(val=0.5)),
        (listing([10, 20, 31]), Settings()),
        (listing([10, 20, 30], classes="abd"), Settings()),
        (ignoring, Settings()),
    ]
    assert len({identity(listed, settings, times=False) for listed, settings in changed}) == len(changed)
    later = listing([10, 20, 30], mtime_ns=8)
    assert identity(later, Settings(), times=False) == identity(base, Settings(), times=False)
    assert identity(later, Settings(), times=True) != identity(base, Settings(), times=True)


def test_the_order_is_pinned() -> None:
    """Part of the format: the same on every machine and in every version."""
    (job,) = jobs(listing([1] * 8), Settings(seed=3))
    assert [int(item.source[2]) for item in job.items] == [5, 1, 3, 7, 4, 0, 2, 6]


@given(
    count=st.integers(3, 80),
    classes=st.integers(1, 3),
    per_class=st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_a_subset_has_the_asked_number_of_classes_and_images(
    count: int, classes: int, per_class: int, seed: int
) -> None:
    listed = listing([5] * count)
    take_subset(listed, Subset(classes=classes, per_class=per_class, seed=seed))
    assert len(listed.classes) == classes
    assert list(listed.classes) == sorted(listed.classes)
    rows = listed.splits["train"]
    counts = np.bincount(rows["label"].to_numpy(), minlength=classes)
    for label, name in enumerate(listed.classes):
        has = len(range("abc".index(name), count, 3))
        assert counts[label] == min(per_class, has)
    for source, label in zip(rows["source"].to_pylist(), rows["label"].to_pylist(), strict=True):
        assert listed.classes[label] == "abc"[int(source[2:-4]) % 3]


def test_a_smaller_subset_is_part_of_a_larger_one() -> None:
    small, large = listing([5] * 60), listing([5] * 60)
    take_subset(small, Subset(per_class=4))
    take_subset(large, Subset(per_class=9))
    assert set(small.splits["train"]["source"].to_pylist()) < set(large.splits["train"]["source"].to_pylist())


@pytest.mark.parametrize("text", ["classes=0", "classes=3,foo=1", "10", "", "per_class=3"])
def test_subsets_that_make_no_sense(text: str) -> None:
    with pytest.raises(FeedlineError, match="write it like classes=10,per-class=50,seed=0"):
        Subset.parse(text)
