"""The loader as its users see it: batches, positions, ranks, early exits, errors."""

import gc
import io
import json
import pickle
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loader import Batch, Loader, PadCrop, RandomResizedCrop, ResizeCenterCrop
from loader.resolve import resolve_backend
from shard.dataset import Dataset
from shard.errors import FeedlineError

CROP = RandomResizedCrop(size=24)


def seen(batches: Iterator[Batch] | Loader) -> list[int]:
    """Ids of the valid rows, in order."""
    return [
        i for batch in batches for i, ok in zip(batch.ids.tolist(), batch.valid.tolist(), strict=True) if ok
    ]


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_a_batch_holds_the_samples_it_names(dataset: Dataset, images: Path, backend: str) -> None:
    """Pixels and labels are those of the named source file."""
    split = dataset.split("val")
    transform = ResizeCenterCrop(size=24, resize=24)
    with Loader(dataset, "val", transform, batch_size=8, backend=backend) as loader:
        for batch in loader:
            for row in range(batch.num_valid):
                i = int(batch.ids[row])
                start = int(split.offset[i])
                data = split.shard_path(int(split.shard[i])).read_bytes()[start : start + int(split.size[i])]
                picture = Image.open(io.BytesIO(data)).convert("RGB")
                height, width = (
                    transform.params(0, 0, [i], split.width[[i]], split.height[[i]]).resized[0].tolist()
                )
                small = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
                top, left = round((height - 24) / 2), round((width - 24) / 2)
                inner = np.s_[4:-4]  # DALI treats the border of a strong reduction differently
                expected = small[top : top + 24, left : left + 24][inner, inner]
                assert np.abs(batch.images[row].numpy().astype(int)[inner, inner] - expected).mean() < 1
                assert int(batch.labels[row]) == int(split.label[i])
                assert any(
                    f.read_bytes() == data
                    for f in (images / "val" / loader.classes[batch.labels[row]]).iterdir()
                )


def test_evaluation_pads_and_masks_the_last_batch(dataset: Dataset) -> None:
    with Loader(dataset, "val", ResizeCenterCrop(size=16, resize=16), batch_size=8) as loader:
        batches = list(loader)
        assert len(batches) == len(loader) == 3
        assert [batch.num_valid for batch in batches] == [8, 8, 5]
        last = batches[-1]
        assert last.images.shape == (8, 16, 16, 3)
        assert last.valid.tolist() == [True] * 5 + [False] * 3
        assert last.ids[5:].tolist() == [-1] * 3
        assert last.labels[5:].tolist() == [0] * 3
        assert last.images[5:].sum() == 0
        assert seen(iter(batches)) == list(range(21))


@pytest.mark.parametrize("backend", ["torch", "dali"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_world_size_gives_the_same_pixels(dataset: Dataset, backend: str, world: int) -> None:
    """Images by sample id, whatever ranks, batch size and threads."""

    def pixels(world: int, batch_size: int, threads: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for rank in range(world):
            with Loader(
                dataset, "train", CROP, batch_size=batch_size, shuffle=True, seed=5, rank=rank,
                world_size=world, backend=backend, threads=threads,
            ) as loader:  # fmt: skip
                loader.set_epoch(3)
                for batch in loader:
                    for row in range(batch.num_valid):
                        assert int(batch.ids[row]) not in found
                        found[int(batch.ids[row])] = batch.images[row].numpy().tobytes()
        return found

    assert pixels(world, 5, 2) == pixels(1, 16, 1)


def test_iterating_again_is_the_next_epoch_in_another_order(dataset: Dataset) -> None:
    with Loader(dataset, "train", CROP, batch_size=10, shuffle=True) as loader:
        first, second = seen(loader), seen(loader)
        assert sorted(first) == sorted(second) == list(range(63))
        assert first != second
        assert (loader.epoch, loader.samples_consumed) == (2, 0)
        loader.set_epoch(0)
        assert seen(loader) == first


def test_crops_change_between_epochs(dataset: Dataset) -> None:
    with Loader(dataset, "train", CROP, batch_size=63) as loader:
        (first,), (second,) = list(loader), list(loader)
        assert first.ids.tolist() == second.ids.tolist()
        changed = (first.images != second.images).flatten(1).any(dim=1)
        assert changed.float().mean() > 0.9


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


def test_a_closed_loader_says_so(dataset: Dataset) -> None:
    loader = Loader(dataset, "val", CROP, batch_size=4)
    loader.close()
    with pytest.raises(FeedlineError, match="closed"):
        iter(loader)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"threads": 0}, "threads is 0; it must lie in 1 … 1024"),
        ({"threads": 1025}, "threads is 1025; it must lie in 1 … 1024"),
        ({"backend": "ffcv"}, "backend is 'ffcv'; choose one of auto, dali, torch"),
        ({"device": "meta"}, "device is 'meta'"),
        ({"device": "gpu"}, "device is 'gpu'; the loader feeds 'cpu' or 'cuda'"),
        ({"device": "cuda:99"}, "device is 'cuda:99', and torch finds . GPUs here"),
        ({"batch_size": "8"}, "batch_size is '8'; it must be a whole number"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number"),
        ({"transform": torch.nn.Flatten()}, r"transform is Flatten\(.*; give `loader.RandomResizedCrop"),
        ({"transform": RandomResizedCrop}, "transform is <class 'loader.augment.RandomResizedCrop'>; give"),
        ({"batch_size": 64, "drop_last": True}, "fewer than one global batch of 64"),
        ({"split": "test"}, "has no split 'test'; it has train, val"),
    ],
)
def test_wrong_arguments_are_named(dataset: Dataset, change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"split": "train", "batch_size": 4, "transform": CROP, **change}
    with pytest.raises(FeedlineError, match=message):
        Loader(dataset, **arguments)  # type: ignore[arg-type]


def test_the_working_folder_may_change(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under Hydra; shards that are opened later, the check before an epoch and pickled copies find the dataset."""
    monkeypatch.chdir(dataset.root.parent)
    with Loader(dataset.root.name, "train", CROP, batch_size=4) as loader:
        first = next(iter(loader))
        monkeypatch.chdir(tmp_path)
        loader.rewind()
        again = seen(loader)
        assert again[:4] == first.ids.tolist()
        assert len(again) == 63
        with pickle.loads(pickle.dumps(loader)) as copy:
            assert len(seen(copy)) == 63


def test_a_truncated_shard_is_named(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(dataset.root, root)
    shard = root / "train" / "shard-000001.tar"
    shard.chmod(0o644)
    with shard.open("r+b") as file:
        file.truncate(2048)
    with (
        Loader(root, "train", CROP, batch_size=8) as loader,
        pytest.raises(FeedlineError, match="has 2048 bytes but"),
    ):
        list(loader)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("backend", "load", "most"),
    # The images are noise, for which the chroma's upsampling is all; the engine has one of its own.
    [("torch", None, 0.01), ("dali", 0.0, 3.0), ("dali", 1.0, 8.0)],
)
def test_gpu_batches_equal_cpu_ones_within_the_decoders_difference(
    dataset: Dataset, backend: str, load: float | None, most: float
) -> None:
    with (
        Loader(
            dataset,
            "train",
            CROP,
            batch_size=8,
            shuffle=True,
            device="cuda",
            backend=backend,
            hw_decoder_load=load,
        ) as gpu,  # fmt: skip
        Loader(dataset, "train", CROP, batch_size=8, shuffle=True, backend="torch") as cpu,
    ):
        for mine, expected in zip(gpu, cpu, strict=True):
            assert mine.images.device.type == mine.labels.device.type == "cuda"
            assert torch.equal(mine.ids, expected.ids)
            assert torch.equal(mine.labels.cpu(), expected.labels)
            assert (mine.images.cpu().float() - expected.images.float()).abs().mean() < most


def test_auto_without_dali_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="nvidia-dali-cuda120 is not installed"):
        assert resolve_backend("auto", torch.device("cuda", 0)) == "torch"
    assert resolve_backend("auto", torch.device("cpu")) == "torch"
    with pytest.raises(FeedlineError, match="backend 'dali' needs the package"):
        resolve_backend("dali", torch.device("cpu"))
