"""Where a loader stands: saved, loaded, left early, overtaken."""

import gc
import json
import re
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loader import Loader, PadCrop, RandomResizedCrop
from shard.dataset import Dataset
from shard.errors import FeedlineError
from tests.loader.seen import seen

CROP = RandomResizedCrop(size=24)


@given(done=st.integers(0, 6), new_world=st.sampled_from([1, 2, 3]), new_batch=st.integers(1, 11))
def test_resume_at_another_world_size_sees_exactly_what_is_left(
    dataset: Dataset, done: int, new_world: int, new_batch: int
) -> None:
    before: list[int] = []
    states = []
    for rank in range(2):
        with Loader(
            dataset, "train", CROP, batch_size=5, shuffle=True, seed=1, rank=rank, world_size=2
        ) as loader:
            loader.set_epoch(4)
            for _, batch in zip(range(done), loader, strict=False):
                before += seen(iter([batch]))
            states.append(json.loads(json.dumps(loader.state_dict())))
    assert states[0] == states[1]
    after: list[int] = []
    for rank in range(new_world):
        with Loader(
            dataset,
            "train",
            CROP,
            batch_size=new_batch,
            shuffle=True,
            seed=1,
            rank=rank,
            world_size=new_world,
        ) as loader:
            loader.load_state_dict(states[0])
            loader.set_epoch(4)  # as a loop over epochs does: must not lose the position
            after += seen(loader)
    assert sorted(before + after) == list(range(63))


def test_resumed_batches_equal_undisturbed_ones(dataset: Dataset) -> None:
    def loader() -> Loader:
        return Loader(dataset, "train", PadCrop(size=20, pad=3), batch_size=8, shuffle=True, seed=2)

    with loader() as whole, loader() as first, loader() as second:
        undisturbed = list(whole)
        for _ in zip(range(3), first, strict=False):
            pass
        second.load_state_dict(first.state_dict())
        resumed = list(second)
        assert len(resumed) == len(undisturbed) - 3
        for mine, expected in zip(resumed, undisturbed[3:], strict=True):
            assert torch.equal(mine.images, expected.images)
            assert torch.equal(mine.ids, expected.ids)


def test_a_state_of_something_else_is_refused(dataset: Dataset) -> None:
    with (
        Loader(dataset, "train", CROP, batch_size=4, seed=1) as loader,
        Loader(dataset, "train", CROP, batch_size=4, seed=2) as other,
        Loader(dataset, "val", CROP, batch_size=4, seed=1) as val,
    ):
        with pytest.raises(FeedlineError, match="seed 1, this loader 2"):
            other.load_state_dict(loader.state_dict())
        with pytest.raises(FeedlineError, match="split 'train', this loader 'val'"):
            val.load_state_dict(loader.state_dict())
        with pytest.raises(FeedlineError, match="dataset 'elsewhere'"):
            loader.load_state_dict({**loader.state_dict(), "dataset": "elsewhere"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples_consumed": -4}, "samples_consumed -4; it must be a whole number in 0 … 63"),
        ({"samples_consumed": 64}, "samples_consumed 64"),
        ({"samples_consumed": None}, "samples_consumed None"),
        ({"epoch": "last"}, "epoch 'last'"),
        ({"epoch": 0.5}, "epoch 0.5"),
    ],
)
def test_a_state_that_is_no_position_is_refused(
    dataset: Dataset, change: dict[str, object], message: str
) -> None:
    with Loader(dataset, "train", CROP, batch_size=4) as loader:
        loader.set_epoch(2)
        with pytest.raises(FeedlineError, match=message):
            loader.load_state_dict(loader.state_dict() | change)
        with pytest.raises(FeedlineError, match="is None, not what"):
            loader.load_state_dict(None)  # type: ignore[arg-type]
        for epoch in (-1, 1.5, torch.tensor(1.5)):
            with pytest.raises(FeedlineError, match=f"set_epoch is given {re.escape(repr(epoch))}; it must"):
                loader.set_epoch(epoch)  # type: ignore[arg-type]
        assert (loader.epoch, loader.samples_consumed) == (2, 0)


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_leaving_early_keeps_the_position_and_leaks_no_thread(dataset: Dataset, backend: str) -> None:
    with Loader(dataset, "train", CROP, batch_size=6, shuffle=True, backend=backend) as loader:
        whole = seen(loader)
        loader.set_epoch(0)
        found: list[int] = []
        while loader.epoch == 0:
            for batch in loader:
                found += seen(iter([batch]))
                break
        assert found == whole
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("feedline")]


def test_an_overtaken_iterator_raises_instead_of_mixing_batches(dataset: Dataset) -> None:
    with Loader(dataset, "train", CROP, batch_size=6) as loader:
        old = iter(loader)
        next(old)
        new = iter(loader)
        assert next(new).ids.tolist() == list(range(6, 12))
        with pytest.raises(FeedlineError, match="this iteration of the Loader is over"):
            next(old)
        assert next(new).ids.tolist() == list(range(12, 18))
        loader.rewind()
        with pytest.raises(FeedlineError, match="is over"):
            next(new)
        assert next(iter(loader)).ids.tolist() == list(range(6))


def test_an_iterator_starts_where_the_loader_stands_at_its_first_batch(dataset: Dataset) -> None:
    """As Lightning has it: iterator first, epoch after; and it leaves epochs with the last batch still in its hand."""
    with (
        Loader(dataset, "train", CROP, batch_size=16, shuffle=True) as loader,
        Loader(dataset, "train", CROP, batch_size=16, shuffle=True) as other,
    ):
        for epoch in (3, 4):
            batches = iter(loader)
            loader.set_epoch(epoch)
            found = [next(batches).ids.tolist() for _ in range(len(loader))]
            other.set_epoch(epoch)
            assert found == [batch.ids.tolist() for batch in other]
        batches = iter(loader)
        loader.close()
        with pytest.raises(FeedlineError, match="closed"):
            next(batches)
