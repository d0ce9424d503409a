from __future__ import annotations

import random
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from shard.errors import FeedlineError
from train import checkpoint
from train.checkpoint import DamagedError


def test_round_trip_without_running_code(tmp_path: Path) -> None:
    content = {"model": {"w": torch.arange(3)}, "step": 7, "losses": [0.5], "config": {"lr": 0.1, "x": None}}
    checkpoint.save(tmp_path / "last.pt", content)
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(loaded["model"]["w"], torch.arange(3))
    assert {k: loaded[k] for k in ("step", "losses", "config")} == {
        k: content[k] for k in ("step", "losses", "config")
    }
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("failure", [OSError("No space left on device"), KeyboardInterrupt()])
def test_failure_while_writing_keeps_the_old_one(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})

    def half(content: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise failure

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(FeedlineError if isinstance(failure, OSError) else KeyboardInterrupt):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_is_told_in_its_own_words(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # of a file, bytes
    try:
        with pytest.raises(FeedlineError, match=r"last\.pt \(\[Errno 27\] File too large\): make room"):
            checkpoint.save(tmp_path / "last.pt", {"w": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_damaged_missing_and_foreign_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(FeedlineError, match="there is no checkpoint"):
        checkpoint.load(path)
    checkpoint.save(path, {"step": 1})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FeedlineError, match=r"last\.pt cannot be read"):
        checkpoint.load(path)
    path.write_bytes(b"")
    with pytest.raises(FeedlineError, match=r"last\.pt cannot be read"):
        checkpoint.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(FeedlineError, match="not a feedline checkpoint"):
        checkpoint.load(path)


def test_a_changed_byte_anywhere_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    content = {"model": {"w": torch.arange(300.0)}, "step": 7}
    checkpoint.save(path, content)
    whole, draw, found = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        at = draw.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :])
        try:
            loaded = checkpoint.load(path)
        except DamagedError as error:
            assert str(path) in str(error)  # noqa: PT017  it need not be raised
            found += 1
        else:  # padding, dates
            assert torch.equal(loaded["model"]["w"], content["model"]["w"])  # type: ignore[index]
            assert loaded["step"] == 7
    assert found > 100


def test_tensor_data_is_verified(tmp_path: Path) -> None:
    """What torch.load alone does not see."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"w": torch.full((100,), 1.5)})
    whole = bytearray(path.read_bytes())
    whole[whole.index(torch.full((10,), 1.5).numpy().tobytes()) + 3] ^= 1
    path.write_bytes(whole)
    torch.load(path, weights_only=True)
    with pytest.raises(DamagedError, match=r"last\.pt cannot be read: it is damaged \(checksum of .*data/0"):
        checkpoint.load(path)
