"""Damage is found, and named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from shard.__main__ import main
from shard.build import build
from shard.dataset import Dataset
from shard.index import file_sha256
from shard.plan import Settings
from shard.verify import verify


@pytest.fixture
def copy(images: Path, tmp_path: Path) -> Path:
    build(images, tmp_path / "data", Settings(shard_bytes=40_000), workers=1)
    return tmp_path / "data"


def test_a_sound_dataset(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(dataset.root, decode=True) == []
    assert main(["verify", str(dataset.root)]) == 0
    assert "sound" in capsys.readouterr().out


def test_every_single_flipped_bit_is_found(copy: Path) -> None:
    rng = np.random.default_rng(0)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    assert {"dataset.json", "SHA256SUMS"} <= {path.name for path in files}
    for path in files:
        data = path.read_bytes()
        for _ in range(4):
            position, bit = int(rng.integers(len(data))), int(rng.integers(8))
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            path.write_bytes(bytes(damaged))
            assert verify(copy), f"bit {bit} of byte {position} of {path.name}"
        path.write_bytes(data)
    assert verify(copy) == []


def test_missing_and_foreign_files_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "train" / "shard-000001.tar").unlink()
    (copy / "train" / "copy of shard.tar").write_bytes(b"x")
    assert main(["verify", str(copy), "--json"]) == 1
    problems = "\n".join(json.loads(capsys.readouterr().out))
    assert "'train/shard-000001.tar', which does not exist" in problems
    assert "copy of shard.tar: not listed" in problems


def test_tar_and_index_are_compared_even_where_the_checksums_fit(copy: Path) -> None:
    """As after somebody exchanged a label and made the checksums anew."""
    split = Dataset.open(copy).split("train")
    path = split.shard_path(int(split.shard[0]))
    with path.open("r+b") as file:
        file.seek(int(split.offset[0]) - 2 * 512)
        assert file.read(1) == str(split.label[0]).encode()
        file.seek(-1, 1)
        file.write(b"2" if split.label[0] != 2 else b"1")
    name = path.relative_to(copy).as_posix()
    sums = (copy / "SHA256SUMS").read_text().splitlines()
    sums = [f"{file_sha256(path)}  {name}" if line.endswith(name) else line for line in sums]
    (copy / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    problems = verify(copy)
    assert any(f"key {split.key(0)}: its label in the tar is" in problem for problem in problems)
    assert any("SHA256SUMS and dataset.json have different SHA-256" in problem for problem in problems)


def test_decode_finds_an_image_that_no_longer_decodes(copy: Path) -> None:
    split = Dataset.open(copy).split("val")
    with split.shard_path(int(split.shard[0])).open("r+b") as file:
        file.seek(int(split.offset[0]))
        file.write(b"\0" * 64)
    assert any(problem.endswith("not an image") for problem in verify(copy, decode=True))


def test_info_counts(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(dataset.root), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["classes"] == 3
    assert {name: split["samples"] for name, split in figures["splits"].items()} == {"train": 63, "val": 21}
    assert (
        figures["splits"]["train"]["class_samples_min"]
        == figures["splits"]["train"]["class_samples_max"]
        == 21
    )
    assert main(["info", str(dataset.root)]) == 0
    assert "samples per class, median 21 7 samples" in " ".join(capsys.readouterr().out.split())


def test_a_copy_of_a_dataset_is_the_same_dataset(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(copy, tmp_path / "elsewhere")
    assert Dataset.open(tmp_path / "elsewhere").fingerprint == Dataset.open(copy).fingerprint
