"""`--overwrite` removes an earlier dataset, and that only when the new one can be built."""

import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shard.build
from shard.__main__ import main
from shard.build import build
from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.plan import Settings
from shard.verify import verify
from tests.shard.test_build import digests
from tests.shard.test_mistakes import fails


@pytest.fixture
def own(dataset: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.root, tmp_path / "own"))


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("{own}/train", "{own}"),
        ("{own}/train/shard-000000.tar", "{own}"),
        ("{own}/train/*.tar", "{own}"),
        ("{own}", "{own}"),
        ("file://{own}", "file://{own}"),
        ("file://{own}/train", "{own}"),
        ("{own}/val", "local://{own}"),
        ("{link}/train", "{own}"),
        ("{own}/train", "{link}"),
        ("{links}", "{own}"),
        ("{disk}", "{moved}"),
    ],
)
def test_a_source_in_the_destination_is_refused(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, destination: str
) -> None:
    (tmp_path / "link").symlink_to(own)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "train-0.tar").symlink_to(own / "train" / "shard-000000.tar")
    moved, disk = tmp_path / "moved", tmp_path / "disk"  # a split that was moved to another disk
    shutil.copytree(own, moved)
    (moved / "train").rename(disk)
    (moved / "train").symlink_to(disk)
    before = everything(tmp_path)
    names = {"own": own, **{name: tmp_path / name for name in ("link", "links", "moved", "disk")}}
    arguments = [source.format(**names), destination.format(**names), "--overwrite"]
    error = fails(capsys, *arguments)
    assert "choose a folder outside of it" in error or "choose another destination" in error
    assert "source " in error
    assert arguments[0] in error or "links/train-0.tar" in error or "shard-000000.tar" in error
    assert arguments[1] in error
    assert everything(tmp_path) == before


def test_a_link_to_the_source_in_the_destination_is_not_the_source(
    images: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "source").symlink_to(images)
    assert main(["build", str(images), str(own), "--overwrite", "--workers", "1"]) == 0
    assert main(["build", str(images), str(own), "--workers", "1"]) == 0
    assert "already complete" in capsys.readouterr().out
    assert (own / "source").is_symlink()


def test_a_source_in_the_destination_is_refused_in_a_bucket(
    own: Path, s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{s3}/{uuid.uuid4().hex}"
    fs = fsspec.filesystem("s3")
    fs.put(str(own), url, recursive=True)
    before = sorted(fs.find(url))
    for source in (url, f"{url}/train", f"{url}/train/*.tar", f"{url}/val/shard-000000.tar"):
        assert url in fails(capsys, source, url, "--overwrite")
    assert "lies in the source" in fails(capsys, url, f"{url}/packed")
    fs.invalidate_cache()
    assert sorted(fs.find(url)) == before
    beside = f"{url}-beside"  # its name begins with the other's, but it lies beside it
    assert main(["build", f"{url}/train", beside, "--workers", "1", "--overwrite"]) == 0


def test_what_is_wrong_is_said_before_anything_is_removed(
    own: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    rows = pa.table(
        {"image": [(images / "train" / "ant" / "000.jpg").read_bytes()] * 300, "label": [0, 1, 2] * 100}
    )
    pq.write_table(rows, hub / "train-0.parquet", row_group_size=100)
    shutil.copy(hub / "train-0.parquet", hub / "train-1.parquet")
    with (hub / "train-1.parquet").open("r+b") as file:
        file.seek(5000)
        file.write(bytes(3000))
    before = everything(own)
    for arguments, message in (
        ((str(images), "--subset", "classes=999"), "ask for fewer"),
        ((str(images), "--val", "20%"), "the source has train, val"),
        ((str(images), "--splits", "trian"), "has no split 'trian'"),
        ((str(images), "--workers", "0"), "workers is 0"),
        ((str(hub),), "as Parquet"),
    ):
        assert message in fails(capsys, arguments[0], str(own), "--overwrite", *arguments[1:])
        assert everything(own) == before
    assert not (own / ".build").exists()


def test_an_unfinished_build_outlives_a_refused_one(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    arguments = ["build", str(images), str(root), "--shard-bytes", "40kB", "--workers", "1"]
    _stop(4, arguments)
    assert main([*arguments, "--overwrite", "--subset", "classes=999"]) == 1
    assert main(arguments) == 0
    assert "(0 from the run before)" not in (said := capsys.readouterr().out)
    assert "from the run before" in said
    assert verify(root, jobs=1) == []


@pytest.mark.parametrize("before", ["finished", "unfinished"])
def test_what_is_spooled_of_the_source_outlives_the_removal(
    own: Path, tmp_path: Path, images: Path, before: str
) -> None:
    rows = pa.table(
        {"image": [path.read_bytes() for path in sorted(images.rglob("*.jpg"))], "label": [0, 1, 2] * 28}
    )
    pq.write_table(rows, tmp_path / "train.parquet")
    if before == "unfinished":
        shutil.rmtree(own)
        _stop(1, ["build", str(images), str(own), "--shard-bytes", "40kB", "--workers", "1"])
    assert main(["build", str(tmp_path / "train.parquet"), str(own), "--overwrite", "--workers", "2"]) == 0
    build(tmp_path / "train.parquet", tmp_path / "fresh", workers=1)
    assert digests(own) == digests(tmp_path / "fresh")
    assert not (own / ".build").exists()


def test_a_kill_right_after_the_removal_leaves_what_the_same_command_goes_on_from(
    own: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    arguments = ["build", str(images), str(own), "--workers", "1", "--seed", "3", "--overwrite"]
    with monkeypatch.context() as patch:
        patch.setattr(shard.build, "begin_plan", killed)
        with pytest.raises(KeyboardInterrupt):
            build(images, own, Settings(seed=3), workers=1, overwrite=True)
    assert not list(own.rglob("*.tar"))
    assert main(arguments) == 0
    assert Dataset.open(own).manifest["settings"]["seed"] == 3
    assert verify(own, jobs=1) == []


def _stop(shards: int, arguments: list[str]) -> None:
    """Kill a build after so many shards."""
    child = subprocess.Popen([sys.executable, "-m", "tests.shard.paused", str(shards), *arguments])
    records = Path(arguments[2], ".build")
    while child.poll() is None and len(list(records.glob("*.json"))) < shards:
        signal.sigtimedwait([], 0.02)
    child.kill()
    child.wait()
    assert len(list(records.glob("*.json"))) >= shards


def _guests(own: Path) -> dict[str, bytes]:
    """Put files of somebody else's beside a dataset's own."""
    shutil.copytree(own / "train", own / "backup")
    if (own / "train" / "shard-000000.tar").exists():
        shutil.copy(own / "train" / "shard-000000.tar", own / "train" / "shard-mine.tar")
    return {
        name: data
        for name, data in everything(own).items()
        if name.startswith("backup/") or name.endswith("mine.tar")
    }


def _of_others(own: Path, ours: Path) -> dict[str, bytes]:
    return {name: data for name, data in everything(own).items() if name not in everything(ours)}


@pytest.mark.parametrize("damage", [None, "manifest", "unfinished", "unfinished, without records"])
def test_only_what_the_earlier_build_made_is_removed(
    own: Path, images: Path, tmp_path: Path, damage: str | None
) -> None:
    if damage == "manifest":
        (own / "dataset.json").write_text("{")
    elif damage is not None:
        shutil.rmtree(own)
        _stop(4, ["build", str(images), str(own), "--shard-bytes", "40kB", "--workers", "1"])
    if damage == "unfinished, without records":  # it was killed before its first shard was noted
        for path in (own / ".build").glob("*.json"):
            path.unlink()
    guests = _guests(own)
    assert len(guests) > 3
    fresh = tmp_path / "fresh"
    build(images / "train", fresh, Settings(seed=3), workers=1)  # fewer shards, no val
    build(images / "train", own, Settings(seed=3), workers=1, overwrite=True)
    assert _of_others(own, fresh) == guests
    assert verify(fresh, jobs=1) == []


@pytest.mark.parametrize("at", [0, 3, 8, 12])
def test_a_kill_amid_the_removal_leaves_no_shard_behind(
    own: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    guests, real, left = _guests(own), Path.unlink, [at]

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if own in path.parents and ".build" not in path.parts:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        real(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            build(images / "train", own, Settings(seed=3), workers=1, overwrite=True)
    build(images / "train", own, Settings(seed=3), workers=1, overwrite=True)
    build(images / "train", tmp_path / "fresh", Settings(seed=3), workers=1)
    assert _of_others(own, tmp_path / "fresh") == guests


@pytest.mark.parametrize("before", ["finished", "unfinished"])
def test_after_a_kill_amid_the_removal_another_build_packs_only_its_own(
    own: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    if before == "unfinished":
        shutil.rmtree(own)
        _stop(4, ["build", str(images), str(own), "--shard-bytes", "40kB", "--workers", "1"])
    other = tmp_path / "other"  # classes of other names
    for number, folder in enumerate(sorted((images / "val").iterdir())):
        shutil.copytree(folder, other / f"class-{number}")
    fresh, real, refused, at = tmp_path / "fresh", Path.unlink, 0, 0
    build(other, fresh, workers=1)
    while True:
        work, left = Path(shutil.copytree(own, tmp_path / "work")), [at]

        def unlink(path: Path, missing_ok: bool = False, left: list[int] = left) -> None:
            left[0] -= path.exists()
            if left[0] < 0:
                raise KeyboardInterrupt
            real(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink)
            try:
                build(other, work, workers=1, overwrite=True)
                break  # there was nothing more to remove
            except KeyboardInterrupt:
                pass
        if (work / "dataset.json").exists() or (work / ".build" / "plan").exists():
            with pytest.raises(FeedlineError, match="--overwrite"):  # nothing of weight is gone yet
                build(other, work, workers=1)
            refused += 1
        else:
            build(other, work, workers=1)
            assert digests(work) == digests(fresh)
        shutil.rmtree(work)
        at += 1
    assert at > 6
    assert refused <= 2


def test_a_dataset_in_a_bucket_is_replaced_and_others_shards_stay(own: Path, images: Path, s3: str) -> None:
    url = f"{s3}/{uuid.uuid4().hex}"
    fs = fsspec.filesystem("s3")
    _guests(own)
    fs.put(str(own), url, recursive=True)
    build(images / "train", url, Settings(seed=3), workers=1, overwrite=True)
    fs.invalidate_cache()
    names = {name.partition("/")[2].partition("/")[2] for name in fs.find(url)}
    assert {name for name in names if name.startswith("val/")} == set()
    assert {"backup/shard-000000.tar", "backup/index.parquet", "train/shard-mine.tar"} <= names
    assert all("not listed" in problem for problem in verify(url))  # what is of others
