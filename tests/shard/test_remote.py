"""Datasets in an object store (a real S3 server on loopback), and builds on a Dask cluster."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import fsspec
import pytest
from distributed import LocalCluster

import shard.storage
from shard.__main__ import main
from shard.build import build
from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.items import FileReader, Item
from shard.plan import Settings
from shard.sources import open_source
from shard.verify import verify
from tests.shard.test_build import digests

SMALL = Settings(shard_bytes=40_000)


@pytest.fixture
def url(s3: str) -> str:
    return f"{s3}/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def local(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("local") / "data"
    build(images, root, SMALL, workers=1)
    return root


def fetched(url: str, folder: Path) -> Path:
    fsspec.filesystem("s3").invalidate_cache()
    fsspec.filesystem("s3").get(url, str(folder), recursive=True)
    return folder


def test_a_dataset_in_s3_is_that_on_a_disk(
    images: Path, local: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", str(images), url, "--shard-bytes", "40kB", "--workers", "2"]
    assert main([*arguments, "--staging", str(tmp_path / "staging")]) == 0
    assert digests(fetched(url, tmp_path / "back")) == digests(local)
    assert not list((tmp_path / "staging").iterdir())
    assert verify(url, decode=True, jobs=1) == []
    assert main(["info", url]) == 0
    assert "3 classes, seed 0" in capsys.readouterr().out
    assert main(["unpack", url, str(tmp_path / "folders")]) == 0
    assert {p.relative_to(tmp_path / "folders") for p in (tmp_path / "folders").rglob("*.jpg")} == {
        p.relative_to(images) for p in images.rglob("*.jpg")
    }
    assert main(["diff", url, str(local)]) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert "already complete" in capsys.readouterr().out


def test_damage_in_s3_is_found(images: Path, url: str) -> None:
    build(images, url, SMALL, workers=1)
    fs = fsspec.filesystem("s3")
    path = f"{url}/train/shard-000001.tar"
    data = bytearray(fs.cat_file(path))
    data[len(data) // 2] ^= 1
    fs.pipe_file(path, bytes(data))
    problems = verify(url)
    assert any(path in problem and "SHA-256 differs" in problem for problem in problems), problems


def test_an_interrupted_upload_shows_no_dataset_and_goes_on(
    images: Path, local: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", str(images), url, "--shard-bytes", "40kB", "--workers", "2"]
    arguments += ["--staging", str(tmp_path / "staging")]
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.shard.paused", "4", *arguments], start_new_session=True
    )
    fs = fsspec.filesystem("s3")
    while True:
        fs.invalidate_cache()
        if fs.exists(f"{url}/.build") and len(fs.ls(f"{url}/.build")) >= 4:
            break
        assert child.poll() is None, "ended before it stood still"
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    with pytest.raises(FeedlineError, match="unfinished build"):
        Dataset.open(url)
    assert main(arguments) == 0
    assert "from the run before" in capsys.readouterr().out
    assert digests(fetched(url, tmp_path / "back")) == digests(local)
    assert not list((tmp_path / "staging").iterdir())


def test_an_upload_that_arrives_changed_is_an_error(
    images: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shard.storage.file_sha256
    monkeypatch.setattr(
        shard.storage, "file_sha256", lambda path: "0" * 64 if "://" in str(path) else real(path)
    )
    with pytest.raises(FeedlineError, match=r"came back different from what was uploaded; it was removed"):
        build(images, url, SMALL, workers=1)
    fsspec.filesystem("s3").invalidate_cache()
    assert not fsspec.filesystem("s3").exists(f"{url}/dataset.json")


def test_sources_in_s3(local: Path, url: str, images: Path, tmp_path: Path) -> None:
    fsspec.filesystem("s3").put(str(local), f"{url}/shards", recursive=True)
    build(open_source(f"{url}/shards", "webdataset"), tmp_path / "again", SMALL, workers=1)
    assert Dataset.open(tmp_path / "again").fingerprint == Dataset.open(local).fingerprint
    assert not list((tmp_path / "again").glob(".build*"))


def test_a_store_that_does_not_answer_is_one_line(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(images), "s3://no-such-bucket-here/x"]) == 1
    assert main(["build", str(images), "nothing://x"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "s3://no-such-bucket-here/x" in errors[0]
    assert "nothing://x" in errors[1]


class SlowReader(FileReader):
    """Gives a test the time to kill somebody."""

    def read(self, item: Item) -> bytes:
        time.sleep(0.05)
        return super().read(item)


def test_dask_survives_a_killed_worker(images: Path, local: Path, tmp_path: Path) -> None:
    source = open_source(str(images))
    assert source.listed is not None
    source.listed.reader = SlowReader(str(images))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        victims = [nanny.pid for nanny in cluster.workers.values()]

        def kill(what: str, done: int, total: int) -> None:
            if victims and done:
                os.kill(victims.pop(), signal.SIGKILL)
                victims.clear()

        build(source, tmp_path / "data", SMALL, scheduler=cluster.scheduler_address, progress=kill)
        assert victims == []
    assert digests(tmp_path / "data") == digests(local)


def test_no_cluster_is_one_line(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "data")
    assert main(["build", str(images), out, "--executor", "dask"]) == 1
    assert "--executor dask and --scheduler ADDRESS go together" in capsys.readouterr().err
