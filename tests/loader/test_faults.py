"""What goes wrong while reading: bad samples are masked, the rest is an error that names itself."""

import io
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from loader import BadSample, Loader, RandomResizedCrop
from loader.reader import PendingRead, Reads
from shard.build import build
from shard.dataset import Dataset, Split
from shard.errors import FeedlineError
from shard.foreign import index_shards
from shard.plan import Settings
from tests.conftest import write_images

CROP = RandomResizedCrop(size=24)
BAD = (3, 11, 12, 30, 44, 45, 62)


@pytest.fixture
def copy(dataset: Dataset, tmp_path: Path) -> Dataset:
    """A dataset that may be damaged."""
    shutil.copytree(dataset.root, tmp_path / "copy")
    return Dataset.open(tmp_path / "copy")


def overwrite(split: Split, sample: int, data: bytes, at: float = 0.0) -> None:
    """Put `data` into the image of a sample, `at` being where, 0 … 1."""
    path = split.shard_path(int(split.shard[sample]))
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(int(split.offset[sample]) + int(at * int(split.size[sample])))
        file.write(data)


def damage(copy: Dataset) -> None:
    """Break the samples BAD in different ways: header, zeros, one byte in the scan."""
    split = copy.split("train")
    for number, sample in enumerate(BAD):
        if number % 3 == 0:
            overwrite(split, sample, b"not a JPEG at all")
        elif number % 3 == 1:
            overwrite(split, sample, bytes(int(split.size[sample])))
        else:
            overwrite(split, sample, b"\x55\xaa", at=0.7)


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_bad_samples_are_masked_and_named(
    dataset: Dataset, copy: Dataset, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(copy)
    split = copy.split("train")
    with (
        Loader(dataset, "train", CROP, batch_size=8, shuffle=True, backend=backend) as sound,
        Loader(copy, "train", CROP, batch_size=8, shuffle=True, backend=backend, max_bad=7) as loader,
        caplog.at_level(logging.WARNING, "feedline.loader"),
    ):
        expected = {
            int(i): image for batch in sound for i, image in zip(batch.ids, batch.images, strict=True)
        }
        for _ in range(2):  # known ones are not counted again
            loader.set_epoch(0)
            met = set()
            for batch in loader:
                assert batch.num_valid == int(batch.valid.sum())
                assert batch.images[~batch.valid].sum() == 0
                assert batch.labels[~batch.valid].sum() == 0
                assert (batch.ids[~batch.valid] == -1).all()
                for i, label, image in zip(
                    batch.ids[batch.valid], batch.labels[batch.valid], batch.images[batch.valid], strict=True
                ):
                    assert int(label) == int(split.label[int(i)])
                    assert torch.equal(image, expected[int(i)])
                    met.add(int(i))
            assert met == set(range(63)) - set(BAD)
        assert sorted(bad.id for bad in loader.bad_samples) == list(BAD)
        assert loader.counters.bad == 7
    for bad in loader.bad_samples:
        assert isinstance(bad, BadSample)
        assert (bad.key, bad.offset) == (split.key(bad.id), int(split.offset[bad.id]))
        assert bad.shard == str(split.shard_path(int(split.shard[bad.id])))
        assert "crc32" in bad.reason
    assert len(caplog.records) == 7


def test_too_many_bad_samples_end_the_run_with_a_list(copy: Dataset) -> None:
    damage(copy)
    with Loader(copy, "train", CROP, batch_size=8, max_bad=5) as loader:
        with pytest.raises(FeedlineError, match=r"6 samples of split 'train' .* max_bad allows 5") as caught:
            list(loader)
        text = str(caught.value)
        assert all(f"sample {i} (key" in text for i in BAD[:6])
        assert "shard verify" in text
    with (
        Loader(copy, "train", CROP, batch_size=8, max_bad=0) as loader,
        pytest.raises(FeedlineError, match="sample 3 "),
    ):
        list(loader)


def test_the_loss_of_a_batch_is_that_of_its_valid_samples(dataset: Dataset, copy: Dataset) -> None:
    damage(copy)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24 * 24 * 3, 3))
    with (
        Loader(copy, "train", CROP, batch_size=63) as loader,
        Loader(dataset, "train", CROP, batch_size=63) as whole,
    ):
        (masked,), (sound,) = list(loader), list(whole)
    rows = masked.valid.nonzero()[:, 0]
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    first = (loss(model(masked.images / 255), masked.labels) * masked.valid).sum() / masked.num_valid
    second = loss(model(sound.images[rows] / 255), sound.labels[rows]).mean()
    torch.testing.assert_close(first, second)


def test_a_changed_dataset_is_detected(copy: Dataset, tmp_path: Path) -> None:
    with Loader(copy, "train", CROP, batch_size=8) as loader:
        list(loader)
        write_images(tmp_path / "other" / "train", 5)
        shutil.rmtree(copy.root)
        build(tmp_path / "other", copy.root, Settings(shard_bytes=80_000), workers=1)
        with pytest.raises(FeedlineError, match="changed under this job"):
            list(loader)


FORKED = """
import gc, os, sys
from loader import Loader, RandomResizedCrop
from shard.errors import FeedlineError

data, backend, how = sys.argv[1:]
loader = Loader(data, "train", RandomResizedCrop(size=24), batch_size=8, backend=backend)
batches = iter(loader)
next(batches)
child = os.fork()
if not child:
    try:
        if how == "goes on":
            next(batches)
        if how == "iterates":
            next(iter(loader))
    except FeedlineError as error:
        print(error, flush=True)
    if how == "closes":
        loader.close()
    if how == "forgets":
        del loader, batches
        gc.collect()
    sys.exit(0)  # the interpreter's own end, which finds the parent's pipelines, too
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(list(batches)))
"""


@pytest.mark.parametrize(
    ("backend", "how"),
    [("torch", "iterates"), ("dali", "goes on"), ("dali", "closes"), ("dali", "forgets"), ("dali", "exits")],
)
def test_a_forked_child_is_told_and_ends_and_its_parent_goes_on(
    dataset: Dataset, backend: str, how: str
) -> None:
    # Python 3.12 warns of any fork beside threads.
    command = [sys.executable, "-Wignore", "-c", FORKED, str(dataset.root), backend, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    *told, end = done.stdout.splitlines()
    assert (end, done.stderr) == ("0 7", "")
    assert len(told) == (how in ("goes on", "iterates"))
    assert all("before this process was forked" in line for line in told)


def _first_ids(loader: Loader, found: "multiprocessing.Queue[list[int]]") -> None:
    with loader:
        found.put(next(iter(loader)).ids.tolist())


def test_a_spawned_process_gets_a_loader_of_its_own(dataset: Dataset) -> None:
    context = multiprocessing.get_context("spawn")
    found: multiprocessing.Queue[list[int]] = context.Queue()
    with Loader(dataset, "train", CROP, batch_size=8, shuffle=True, seed=3) as loader:
        for _ in zip(range(2), loader, strict=False):
            pass
        process = context.Process(target=_first_ids, args=(loader, found))
        process.start()
        expected = next(iter(loader)).ids.tolist()
        assert found.get(timeout=120) == expected
        process.join()
        copy = pickle.loads(pickle.dumps(loader))
        assert (copy.epoch, copy.samples_consumed) == (loader.epoch, loader.samples_consumed)
        copy.close()


def test_storage_that_hangs_ends_in_an_error(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Reads.start

    def hanging(self: Reads, ids: np.ndarray) -> PendingRead:
        pending = start(self, ids)
        pending.checks.append(self._pool.submit(time.sleep, 3))
        return pending

    monkeypatch.setattr(Reads, "start", hanging)
    with (
        Loader(dataset, "train", CROP, batch_size=8, timeout_s=0.2) as loader,
        pytest.raises(FeedlineError, match=r"longer than timeout_s \(0 s\): the storage hangs"),
    ):
        list(loader)


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_what_is_packed_but_does_not_decode_is_masked_and_not_tried_again(
    tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes are those of the index, so that the decoder has to find out: shards that somebody else wrote."""
    write_images(tmp_path / "images" / "train", 5)
    files = sorted((tmp_path / "images").rglob("*.jpg"))
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for number, path in enumerate(files):
            content = path.read_bytes()
            if number in (4, 9):
                content = content[:700]  # header and tables are there, the picture is not
            for name, data in ((f"{number:03d}.jpg", content), (f"{number:03d}.cls", b"1")):
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    index_shards([str(tmp_path / "train.tar")], tmp_path / "index", jobs=1)
    with Loader(tmp_path / "index", "train", CROP, batch_size=8, backend=backend) as loader:
        for _ in range(2):
            batches = list(loader)
            ids = [i for batch in batches for i in batch.ids[batch.valid].tolist()]
            assert ids == [i for i in range(15) if i not in (4, 9)]
    assert [bad.id for bad in loader.bad_samples] == [4, 9]
    assert all(bad.shard == str(tmp_path / "train.tar") for bad in loader.bad_samples)
    assert all("crc32" not in bad.reason and len(bad.reason) > 5 for bad in loader.bad_samples)


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_an_interrupt_while_waiting_leaves_nothing_shifted(
    dataset: Dataset, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Loader(dataset, "train", CROP, batch_size=63, backend=backend) as loader:
        loader.set_epoch(1)
        (expected,) = list(loader)
        loader.set_epoch(0)
        module = (
            "loader.torch_backend.TorchBackend" if backend == "torch" else "loader.dali_backend.DaliBackend"
        )

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if backend == "torch":
                patch.setattr("loader.torch_backend._wait", interrupted)
            else:
                patch.setattr(f"{module}._outputs", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(loader)
        loader.set_epoch(1)
        (found,) = list(loader)
        assert torch.equal(found.images, expected.images)


def test_a_shard_that_is_cut_short_under_a_running_job_is_named(copy: Dataset) -> None:
    split = copy.split("train")
    with Loader(copy, "train", CROP, batch_size=4, max_bad=0) as loader:
        batches = iter(loader)
        next(batches)
        for number in range(len(split.shards)):
            path = split.shard_path(number)
            path.chmod(0o644)
            os.truncate(path, 512)
        with pytest.raises(FeedlineError, match=r"its shard ends after \d+ of its|has 512 bytes but"):
            list(batches)
