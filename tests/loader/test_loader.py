"""The loader as its users see it: batches, ranks, errors."""

import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loader import Loader, RandomResizedCrop, ResizeCenterCrop
from loader.resolve import resolve_backend
from shard.dataset import Dataset
from shard.errors import FeedlineError
from tests.loader.seen import seen

CROP = RandomResizedCrop(size=24)


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
        differences = []
        for mine, expected in zip(gpu, cpu, strict=True):
            assert mine.images.device.type == mine.labels.device.type == "cuda"
            assert torch.equal(mine.ids, expected.ids)
            assert torch.equal(mine.labels.cpu(), expected.labels)
            differences.append(float((mine.images.cpu().float() - expected.images.float()).abs().mean()))
    assert max(differences) < most
    if backend == "dali":  # the very pixels of libjpeg-turbo would say that the CPU decoded after all
        assert min(differences) > 0


def test_auto_without_dali_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="nvidia-dali-cuda120 is not installed"):
        assert resolve_backend("auto", torch.device("cuda", 0)) == "torch"
    assert resolve_backend("auto", torch.device("cpu")) == "torch"
    with pytest.raises(FeedlineError, match="backend 'dali' needs the package"):
        resolve_backend("dali", torch.device("cpu"))
