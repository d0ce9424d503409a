from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shard.errors import FeedlineError
from train import checkpoint
from train.checkpoint import SaveConfig
from train.run_folder import RunFolder
from train.saver import Saver, Snapshot

CPU = torch.device("cpu")


def nothing() -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.prepare(fresh=True)
    return made


def steps(folder: RunFolder) -> dict[str, int]:
    """Step of every checkpoint, by name."""
    return {p.name: checkpoint.load(p)["step"] for p in sorted(folder.checkpoints.iterdir())}


def test_keeps_the_newest_and_the_best(folder: RunFolder) -> None:
    saver = Saver(folder, SaveConfig(keep_last=3), CPU)
    for step in (10, 20, 30, 40, 50):
        saver.submit({"step": step}, best=step == 20, before=nothing)
    saver.close()
    assert steps(folder) == {
        "best.pt": 20, "last.pt": 50, "step-000000030.pt": 30, "step-000000040.pt": 40,
    }  # fmt: skip


def test_a_resumed_run_goes_on_keeping(folder: RunFolder) -> None:
    checkpoint.save(folder.last, {"step": 10})
    saver = Saver(folder, SaveConfig(keep_last=2), CPU, last_step=10)
    saver.submit({"step": 10}, best=False, before=nothing)  # stopped again at once: the same step
    saver.submit({"step": 20}, best=False, before=nothing)
    saver.close()
    assert steps(folder) == {"last.pt": 20, "step-000000010.pt": 10}


def test_keeping_one_leaves_nothing_else(folder: RunFolder) -> None:
    saver = Saver(folder, SaveConfig(keep_last=1), CPU)
    for step in (10, 20):
        saver.submit({"step": step}, best=False, before=nothing)
    saver.close()
    assert steps(folder) == {"last.pt": 20}


def test_training_goes_on_while_it_writes(folder: RunFolder) -> None:
    """The content may change at once; the next save waits for the one before it."""
    held = threading.Event()
    weight = torch.zeros(4)
    saver = Saver(folder, SaveConfig(keep_last=9), CPU)
    saver.submit({"step": 1, "w": weight, "list": [weight]}, best=False, before=lambda: bool(held.wait(20)))
    weight.fill_(1.0)  # the next step, before the file exists
    assert not folder.last.exists()
    saver.check()
    threading.Timer(0.05, held.set).start()
    saver.submit({"step": 2, "w": weight, "list": []}, best=False, before=nothing)
    assert held.is_set(), "two were in flight"
    weight.fill_(2.0)
    saver.close()
    first, second = (checkpoint.load(p)["w"] for p in (folder.at_step(1), folder.last))
    assert (first.tolist(), second.tolist()) == ([0.0] * 4, [1.0] * 4)


def test_the_snapshot_reuses_its_memory_and_keeps_layouts() -> None:
    snapshot = Snapshot(CPU)
    image = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    content = {"a": image, "b": [torch.arange(3), {"c": torch.tensor(1.0)}], "n": 3, "s": "x"}
    first = snapshot.take(content)
    assert torch.equal(first["a"], image)
    assert first["a"].stride() == image.stride()
    assert (first["n"], first["s"], first["b"][1]["c"].item()) == (3, "x", 1.0)
    second = snapshot.take(content)
    assert second["a"].data_ptr() == first["a"].data_ptr() != image.data_ptr()
    grown = snapshot.take({**content, "b": [torch.arange(4)]})
    assert grown["b"][0].tolist() == [0, 1, 2, 3]


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with room for 256 KiB: a file system of its own where we may mount one, else one that plays it."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        yield place
        subprocess.run(["umount", "-l", str(place)], check=True)
        return
    save = torch.save

    def limited(content: Any, file: Any) -> None:
        save(content, file)
        if file.tell() > 256 * 1024:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", limited)
    yield place


def test_a_full_disk_leaves_the_earlier_checkpoint_and_is_told_at_the_next_step(small_disk: Path) -> None:
    folder = RunFolder(small_disk / "run")
    folder.prepare(fresh=True)
    saver = Saver(folder, SaveConfig(), CPU)
    saver.submit({"step": 1, "w": torch.zeros(10_000)}, best=True, before=nothing)
    saver.wait()
    saver.submit({"step": 2, "w": torch.zeros(100_000)}, best=False, before=nothing)
    while saver._writing is not None and not saver._writing.done():
        pass
    with pytest.raises(FeedlineError, match=r"cannot write the checkpoint .*last\.pt \(.*make room"):
        saver.check()
    saver.check()  # told once
    saver.close()
    assert steps(folder) == {"best.pt": 1, "last.pt": 1}


def test_an_error_at_the_very_end_is_shown(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: Any, file: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    saver = Saver(folder, SaveConfig(), CPU)
    saver.submit({"step": 1}, best=False, before=nothing)
    saver.close()
    assert "No space left on device" in capsys.readouterr().err
    assert list(folder.checkpoints.iterdir()) == []


@pytest.mark.parametrize("values", [{"keep_last": 0}, {"checkpoint_every": 0}])
def test_settings_that_would_keep_nothing_are_errors(values: dict[str, int]) -> None:
    with pytest.raises(FeedlineError, match=f"{next(iter(values))} is 0"):
        SaveConfig(**values)
