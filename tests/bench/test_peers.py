"""Adapters of the installed peers, the check that they do the same work, and the table; never how fast."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from bench.__main__ import main
from bench.peers import PEERS, entry
from bench.peers.augment import draw_window, operations_per_image, rand_augment, resolve
from bench.peers.base import Job, Peer
from bench.peers.compare import Contest, compare
from bench.peers.isolated import Isolated
from bench.peers.probe import antialiased, as_pixels, differences, examine, make_probes, read_windows
from bench.peers.report import picture, table, verdict
from loader import RandomResizedCrop
from shard.dataset import Dataset
from shard.errors import FeedlineError

SIZE = 32
DEPENDENCIES = ("feedline", "dali", "torchvision", "torchvision_v2", "timm", "webdataset", "hf_datasets")


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_probes(tmp_path_factory.mktemp("probes"), SIZE)


def job(data: Path, scratch: Path, **changes: Any) -> Job:
    made = Job(
        data=data, split="train", crop=RandomResizedCrop(size=SIZE), batch_size=32, device=torch.device("cpu"),
        threads=1, scratch=scratch,
    )  # fmt: skip
    return replace(made, **changes)


@pytest.mark.parametrize("name", DEPENDENCIES)
def test_every_installed_peer_does_the_same_work(name: str, probes: Path, tmp_path: Path) -> None:
    peer = entry(name).make(job(probes, tmp_path))
    try:
        found = examine(peer)
        assert differences(found) == []
        assert antialiased(found)
        layout = (32, SIZE, SIZE, 3) if "NHWC" in peer.output else (32, 3, SIZE, SIZE)
        assert tuple(found["shape"]) == layout
        assert peer.output.startswith(found["dtype"])
        assert found["distinct"] == found["images"] >= 256  # 8 full batches out of 272 images
        assert peer.step()[0] == 32
    finally:
        peer.close()


@pytest.mark.parametrize("name", ["feedline", "dali", "torchvision", "torchvision_v2", "timm"])
def test_augmented_batches_keep_shape_and_range(name: str, dataset: Dataset, tmp_path: Path) -> None:
    text = resolve("rand-m9-n2")
    peer = entry(name).make(job(dataset.root, tmp_path, augment=text, batch_size=16))
    try:
        assert peer.step() == (16, 0)
        pixels = as_pixels(peer.images)
        assert pixels.shape == (16, SIZE, SIZE, 3)
        assert -0.01 < pixels.min() < pixels.max() < 255.01
    finally:
        peer.close()


class _Lazy(Peer):
    """Does less: a fixed centre crop without antialiasing, half of the images, one of them twice."""

    def epoch(self) -> Any:
        images = [(np.asarray(Image.open(path)), int(path.parent.name)) for path in self._paths()]
        chosen = [*images[: len(images) // 2], images[0]]
        for first in range(0, len(chosen), 32):
            part = chosen[first : first + 32]
            crops = [_centre(image) for image, _ in part]
            yield torch.from_numpy(np.stack(crops)), torch.tensor([label for _, label in part])

    def _paths(self) -> list[Path]:
        return sorted(self.class_folders().rglob("*.jpg"))


def _centre(image: Any) -> Any:
    top, left = (image.shape[0] - SIZE) // 2, (image.shape[1] - SIZE) // 2
    return image[top : top + SIZE, left : left + SIZE]


def test_a_peer_that_does_less_is_found_out(probes: Path, tmp_path: Path) -> None:
    found = examine(_Lazy(job(probes, tmp_path)))
    text = "; ".join(differences(found))
    for part in (
        "136 of 272 images in an epoch", "1 images twice", "the same window in every epoch for 100% of the images",
        "flips 0% instead of 50%", "area of the window", "left of the window", "top of the window",
    ):  # fmt: skip
        assert part in text
    assert not antialiased(found)


@pytest.mark.parametrize("flip", [False, True])
def test_a_window_is_read_from_its_pixels(flip: bool) -> None:
    y, x = np.mgrid[:40, :60].astype(float)
    image = np.stack([255 * (x + 0.5) / 60, 255 * (y + 0.5) / 40, 0 * x], axis=2)
    crop = image[8:24, 15:31]
    windows, flips = read_windows(crop[None, :, ::-1] if flip else crop[None])
    np.testing.assert_allclose(windows, [[15 / 60, 8 / 40, 16 / 60, 16 / 40]], atol=1e-9)
    assert flips.tolist() == [flip]


def test_drawn_windows_lie_inside() -> None:
    rng, crop = np.random.default_rng(0), RandomResizedCrop()
    for width, height in ((40, 30), (500, 20), (3, 200)):
        for _ in range(50):
            left, top, w, h = draw_window(width, height, crop, rng)
            assert 0 <= left <= left + w <= width
            assert 0 <= top <= top + h <= height
            assert min(w, h) > 0


def test_policies_are_compared_at_equal_work() -> None:
    assert resolve("rand-m9-n2") == "rand-m9-n2-p0.929"
    assert resolve("rand-m9-p1.0") == "rand-m9-p1.0"
    assert resolve("ta_wide") == "ta_wide"
    assert rand_augment("rand-m9-n3") == (3, 27)
    assert (
        operations_per_image("rand-m9-n2-p0.929", (0, 1))
        == operations_per_image("rand-m9-n2", (1, 14))
        == 1.86
    )
    assert operations_per_image("ta_wide", (0, 1)) is None
    with pytest.raises(FeedlineError, match="policy is 'blur'"):
        resolve("blur")


def test_the_command_measures_checks_and_lists(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        PEERS, "absent", replace(PEERS["dali"], title="Absent", packages=("no-such-package",))
    )
    arguments = [
        "peers",
        "--data",
        str(dataset.root),
        "--only",
        "dali,absent",
        "--size",
        str(SIZE),
        "--threads",
        "1",
    ]
    arguments += ["--batch-size", "16", "--repeats", "1", "--seconds", "0.05", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "peers.json").read_text())
    assert [peer["name"] for peer in record["peers"]] == ["feedline", "dali"]
    for peer in record["peers"]:
        assert peer["differences"] == []
        assert peer["images_per_s"][0] > 0
        assert f"nvidia-dali-cuda120 {peer['versions']['nvidia-dali-cuda120']}" in out
    assert "left out: Absent: not installed (no-such-package)" in out
    assert record["peers"][0]["ours_over_peer"] == 1
    assert (tmp_path / "out" / "peers.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "dali,nvjpeg"], "there is no peer 'nvjpeg'; choose out of feedline, dali"),
        (["--batch-size", "64"], "has 63 images in split train, less than a batch of 64"),
        (["--augment", "blur"], "augmentation policy is 'blur'"),
        (["--split", "test"], "has no split 'test'"),
        (["--seconds", "-1"], "--seconds is -1.0; it must be positive"),
    ],
)
def test_mistakes_end_in_one_line(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["peers", "--data", str(dataset.root), "--out", str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "out").exists()


def test_a_peer_that_fails_its_check_is_left_out(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.compare.Isolated", _Stub)
    monkeypatch.setattr("bench.peers.compare.make_probes", lambda folder, size: folder)
    contest = Contest(
        data=dataset.root, batch_size=8, threads=1, repeats=2, seconds=0.01, only=("timm", "ffcv", "dali")
    )
    monkeypatch.setitem(PEERS, "ffcv", replace(PEERS["ffcv"], packages=("torch",)))
    record = compare(contest, torch.device("cpu"), lambda text: None)
    assert [peer["name"] for peer in record["peers"]] == ["feedline", "dali"]
    assert [left["why"] for left in record["left_out"]] == ["peer timm failed", "peer ffcv failed"]
    assert record["peers"][1]["differences"] == ["detail 0.50 × ours"]
    assert _Stub.closed == ["timm", "ffcv", "dali", "feedline"]
    record = compare(
        replace(contest, threads=60, only=("webdataset", "dali")), torch.device("cpu"), lambda text: None
    )
    assert [peer["name"] for peer in record["peers"]] == ["feedline", "dali"]
    (left,) = record["left_out"]
    assert left["why"].startswith(
        f"deals whole shards to its workers, and there are {record['settings']['shards']} for 60"
    )
    with pytest.raises(FeedlineError, match="no more"):
        compare(replace(contest, size=7), torch.device("cpu"), lambda text: None)


class _Stub:
    """In place of `Isolated`."""

    output, note, lead_in = "uint8 NHWC", "", 0
    closed: ClassVar[list[str]] = []

    def __init__(self, name: str, job: Job) -> None:
        self.name, self.title, self.size = name, entry(name).title, job.crop.size

    def examine(self, probes: Path) -> dict[str, Any]:
        if self.size == 7:
            raise FeedlineError("no more")
        if self.name in ("timm", "ffcv"):
            raise FeedlineError(f"peer {self.name} failed")
        figures = {"area": [0.5, 0.2], "log_aspect": [0.0, 0.2], "left": [0.5, 0.3], "top": [0.5, 0.3]}
        return {
            "shape": [32, 224, 224, 3], "images": 256, "distinct": 256, "samples": 272, "size": 224, "batch_size": 32,
            "flips": 0.5, "repeated": 0.0, "contrast": 0.1, "expected": {"flips": 0.5, **figures}, **figures,
        }  # fmt: skip

    def make(self) -> None:
        """Nothing to make."""

    def texture(self, images: int) -> dict[str, float]:
        return {"mean": 100.0, "std": 50.0, "detail": 10.0 if self.name == "feedline" else 5.0}

    def step(self) -> tuple[int, int]:
        return 8, 0

    def synchronize(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        self.closed.append(self.name)


def test_a_peer_that_dies_is_named_and_leaves_nothing(dataset: Dataset, tmp_path: Path) -> None:
    peer = Isolated("feedline", job(dataset.root, tmp_path))
    try:
        peer._process.kill()
        with pytest.raises(FeedlineError, match="peer feedline ended during make: it said nothing"):
            peer.make()
    finally:
        peer.close()
    assert not Path(peer._folder.name).exists()


def record(**rates: float) -> dict[str, Any]:
    peers = [
        {
            "name": name, "title": f"title of {name}", "versions": {name: "1.2", "other": None}, "note": "a note",
            "output": "uint8 NHWC", "antialias": name != "ffcv", "operations_per_image": None,
            "differences": ["flips 0% instead of 50%"] if name == "ffcv" else [],
            "images_per_s": [rate * 0.9, rate, rate * 1.1], "cpu_s_per_1000": [1.0, 2.0, 3.0],
            "ours_over_peer": rates["feedline"] / rate,
        }
        for name, rate in rates.items()
    ]  # fmt: skip
    return {
        "peers": peers, "left_out": [{"name": "x", "title": "X", "why": "not installed (x)"}],
        "settings": {"augment": None, "size": 224, "batch_size": 64, "threads": 2},
        "environment": {"gpu": None, "cpu": "some CPU", "cores": 2, "commit": "abc123"},
    }  # fmt: skip


def test_the_table_ranks_and_names_versions_differences_and_absentees() -> None:
    lines = table(record(feedline=1000, timm=500, ffcv=800)).splitlines()
    assert [line.split()[2] for line in lines[1:4]] == ["feedline", "ffcv", "timm"]
    assert "1.25" in lines[2]
    assert "* title of ffcv: flips 0% instead of 50%" in lines
    assert "title of timm: timm 1.2; a note" in lines
    assert "left out: X: not installed (x)" in lines
    assert lines[-1] == "Ours is first: 1.25 × the next, title of ffcv."


def test_who_is_faster_is_told_by_the_ratios() -> None:
    found = record(feedline=1000, timm=500, ffcv=800)
    found["peers"][1] |= {  # measured when the machine was slow: 500 images/s, but nearly as many as ours then
        "ours_over_peer": 1.02, "ours_over_peer_interval": {"low": 0.97, "high": 1.07, "confidence": 0.94},
    }  # fmt: skip
    lines = table(found).splitlines()
    assert [line.split()[2] for line in lines[1:4]] == ["feedline", "timm", "ffcv"]
    assert "1.02 (0.97 – 1.07)" in lines[2]
    assert lines[-1] == "Ours is first, but not surely: 1.02 × (0.97 – 1.07) the next, title of timm."


def test_the_verdict_says_when_ours_is_not_first() -> None:
    assert verdict(record(feedline=1000, timm=1250, ffcv=800)) == (
        "Not first: ahead of ours is title of timm (1.25 × ours)."
    )


def test_the_picture_shows_one_bar_per_peer(tmp_path: Path) -> None:
    picture(record(feedline=1000, timm=500, ffcv=800), tmp_path / "p.png")
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    for colour in ((0x1B, 0x6C, 0xA8), (0xC5, 0xC5, 0xC5), (0xE3, 0xC9, 0xA8)):
        assert (np.abs(pixels.astype(int) - colour).max(axis=2) < 4).sum() > 500
