"""Batches of multi-label datasets."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from loader import Loader, Order, ResizeCenterCrop
from shard.__main__ import main
from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.synth import render

CLASSES = 3
PLAIN = ResizeCenterCrop(size=8, resize=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images; image i is of class c where bit c of i is set."""
    root = tmp_path_factory.mktemp("multi")
    rows = ["path,label"]
    for i in range(10):
        (root / f"{i}.jpg").write_bytes(render(0, i, 0, 8, 8, 2.0))
        rows.append(f"{i}.jpg,{'|'.join(f'c{c}' for c in range(CLASSES) if i >> c & 1)}")
    (root / "list.csv").write_text("\n".join(rows))
    assert main(["build", str(root / "list.csv"), str(root / "data"), "--multi-label", "--workers", "1"]) == 0
    return root / "data"


def loader(data: Path, *, batch_size: int = 4, shuffle: bool | Order = False, seed: int = 0) -> Loader:
    return Loader(
        data, "train", PLAIN, batch_size=batch_size, shuffle=shuffle, seed=seed, threads=1, backend="torch"
    )


def test_labels_are_multi_hot_and_padding_is_zero(data: Path) -> None:
    split = Dataset.open(data).split("train")
    assert split.lists is not None
    with loader(data) as batches:
        for batch in batches:
            assert (batch.labels.dtype, tuple(batch.labels.shape)) == (torch.float32, (4, CLASSES))
            for i, row, valid in zip(batch.ids.tolist(), batch.labels, batch.valid.tolist(), strict=True):
                assert row.nonzero().flatten().tolist() == (split.lists[i] if valid else [])
    assert batch.num_valid == 2


def test_a_sample_that_does_not_decode_has_no_label(data: Path, tmp_path: Path) -> None:
    split = Dataset.open(data).split("train")
    assert split.lists is not None
    broken = next(i for i in range(10) if len(split.lists[i]) > 1)
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "train" / "shard-000000.tar").open("r+b") as tar:
        tar.seek(int(split.offset[broken]))
        tar.write(bytes(int(split.size[broken])))
    with loader(tmp_path, batch_size=10) as batches:
        batch = next(iter(batches))
    assert not batch.valid[broken]
    assert not batch.labels[broken].any()


def test_order_and_resume_are_as_ever(data: Path) -> None:
    with loader(data, shuffle=True, seed=3) as batches:
        seen = [batch.ids for batch in batches]
    np.testing.assert_array_equal(np.sort(torch.cat(seen).numpy()), [-1, -1, *range(10)])
    with loader(data, shuffle=True, seed=3) as batches:
        next(iter(batches))
        state = batches.state_dict()
    with loader(data, shuffle=True, seed=3) as batches:
        batches.load_state_dict(state)
        assert torch.equal(torch.cat([batch.ids for batch in batches]), torch.cat(seen[1:]))


def test_balance_refuses(data: Path) -> None:
    with pytest.raises(FeedlineError, match=r"balance 0.5 is not available for multi-label datasets"):
        loader(data, shuffle=Order(shuffle="global", balance=0.5))
