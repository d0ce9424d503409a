"""Shards of our own datasets as sources: numbers keep the names of their classes, contradictions are errors."""

import json
import shutil
import tarfile
from pathlib import Path

import fsspec
import pytest

from shard.__main__ import main
from shard.build import build
from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.sources import open_source
from shard.sources.own import own_classes
from tests.conftest import write_images
from tests.shard.conftest import SMALL, add
from tests.shard.hostile import corpus
from tests.shard.test_sources import samples


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A folder with two datasets whose numbers mean different classes."""
    for name, classes in (("A", ("cat", "dog")), ("B", ("ship", "truck"))):
        write_images(tmp_path / name, 3, classes)
        build(tmp_path / name, tmp_path / "sets" / name, SMALL, workers=1)
    return tmp_path / "sets"


@pytest.mark.parametrize(
    "pattern", ["", "/{A,B}/train/*.tar", "/*/train/*.tar", "/{A,B}/train/shard-000000.tar"]
)
def test_datasets_of_different_classes_are_not_packed_together(
    parent: Path, tmp_path: Path, pattern: str
) -> None:
    source = open_source(f"{parent}{pattern}", "webdataset")
    message = (
        f"label 0 is 'cat' in {parent}/A and 'ship' in {parent}/B; unpack them .* or give --classes FILE"
    )
    with pytest.raises(FeedlineError, match=message):
        build(source, tmp_path / "merged", SMALL, workers=1)
    (tmp_path / "names.txt").write_text("first\nsecond\n")
    source = open_source(f"{parent}{pattern}", "webdataset", classes=tmp_path / "names.txt")
    build(source, tmp_path / "merged", SMALL, workers=1)
    assert Dataset.open(tmp_path / "merged").classes == ("first", "second")


def test_a_class_more_or_no_manifest_is_an_error_too(parent: Path, tmp_path: Path) -> None:
    manifest = parent / "B" / "dataset.json"
    about = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**about, "classes": ["cat", "dog", "emu"]}))
    with pytest.raises(FeedlineError, match=r"sets/A has 2 and .*sets/B has 3"):
        build(open_source(str(parent), "webdataset"), tmp_path / "merged", SMALL, workers=1)
    manifest.unlink()
    for source in (str(parent), f"{parent}/{{B,A}}/train/*.tar"):
        message = r"shards of the dataset .*sets/A, and others in .*sets/B/train, which belongs to none"
        with pytest.raises(FeedlineError, match=message):
            build(open_source(source, "webdataset"), tmp_path / "merged", SMALL, workers=1)


def test_datasets_of_the_same_classes_keep_their_names(parent: Path, tmp_path: Path) -> None:
    shutil.rmtree(parent / "B")
    build(open_source(str(parent), "webdataset"), tmp_path / "one", SMALL, workers=1)
    assert samples(tmp_path / "one") == samples(parent / "A")
    assert Dataset.open(tmp_path / "one").classes == ("cat", "dog")
    shutil.copytree(parent / "A", parent / "B")
    build(open_source(str(parent), "webdataset"), tmp_path / "two", SMALL, workers=1)
    assert Dataset.open(tmp_path / "two").classes == ("cat", "dog")
    for name in ("A/train", "A/train/shard-000000.tar", "A/train/*.tar", "A"):
        build(
            open_source(f"{parent}/{name}", "webdataset"),
            tmp_path / "again",
            SMALL,
            workers=1,
            overwrite=True,
        )
        assert Dataset.open(tmp_path / "again").classes == ("cat", "dog")


def test_shards_away_from_their_class_list_know_their_classes(parent: Path, tmp_path: Path) -> None:
    """Their numbers alone would be classes without names, or mean others."""
    away = tmp_path / "away" / "train"
    away.mkdir(parents=True)
    shutil.copy(parent / "A" / "train" / "shard-000000.tar", away / "A.tar")

    def pack(name: str, classes: Path | None = None) -> tuple[str, ...]:
        source = open_source(str(away), "webdataset", classes=classes)
        build(source, tmp_path / name, SMALL, workers=1)
        return Dataset.open(tmp_path / name).classes

    assert pack("one") == ("cat", "dog")
    shutil.copy(parent / "B" / "train" / "shard-000000.tar", away / "B.tar")
    with pytest.raises(
        FeedlineError, match=r"label 0 is 'ship' in .*B.tar, and 'cat' in .* before it: .* --classes"
    ):
        pack("two")
    shutil.copy(parent / "A" / "dataset.json", away)
    with pytest.raises(
        FeedlineError, match=r"label 0 is 'ship' in .*B.tar, and 'cat' in .* before it: .* --classes"
    ):
        pack("two")
    assert not (tmp_path / "two" / "dataset.json").exists()
    (tmp_path / "names.txt").write_text("first\nsecond\n")
    assert pack("two", tmp_path / "names.txt") == ("first", "second")


def test_a_manifest_may_call_classes_otherwise_than_the_samples_do(parent: Path, tmp_path: Path) -> None:
    manifest = parent / "A" / "dataset.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "classes": ["Katze", "Hund"]}))
    build(open_source(str(parent / "A"), "webdataset"), tmp_path / "out", SMALL, workers=1)
    assert Dataset.open(tmp_path / "out").classes == ("Katze", "Hund")


@pytest.mark.parametrize(
    ("above", "message"),
    [
        (
            ("dog", "cat"),
            r"'cat' is label 0 in .*A.tar, and label 1 in the dataset.json above it: .* --classes",
        ),
        (
            None,
            r"'cat' is label 1 in .*B.tar, and label 0 in another of its samples or a shard before it: .* --cl",
        ),
    ],
)
def test_a_class_of_two_numbers_is_an_error(
    tmp_path: Path, above: tuple[str, str] | None, message: str
) -> None:
    (tmp_path / "away").mkdir()
    for name, classes in (("A", ("cat", "dog")), ("B", ("bird", "cat"))):
        write_images(tmp_path / name, 3, classes)
        build(tmp_path / name, tmp_path / "sets" / name, SMALL, workers=1)
        with (
            tarfile.open(tmp_path / "sets" / name / "train" / "shard-000000.tar") as tar,
            tarfile.open(tmp_path / "away" / f"{name}.tar", "w") as out,
        ):
            for member in tar:
                key = member.name.split(".")[0]
                about = tar.extractfile(f"{key}.json")
                if about and json.load(about)["class"] == "cat":
                    out.addfile(member, tar.extractfile(member))
    if above:
        manifest = tmp_path / "sets" / "A" / "dataset.json"
        (tmp_path / "away" / "dataset.json").write_text(
            json.dumps({**json.loads(manifest.read_text()), "classes": above})
        )
    with pytest.raises(FeedlineError, match=message):
        build(open_source(str(tmp_path / "away"), "webdataset"), tmp_path / "out", SMALL, workers=1)


def test_a_class_that_no_sample_names_is_asked_for(parent: Path, tmp_path: Path) -> None:
    shard = tmp_path / "away.tar"
    shutil.copy(parent / "A" / "train" / "shard-000000.tar", shard)
    with tarfile.open(shard, "a") as tar:
        add(tar, "more.jpg", corpus()["baseline.jpg"].data)
        add(tar, "more.cls", b"2")
    message = (
        "no sample says what the class of label 2 is called, but those of label 0 do \\('cat'\\); give all"
    )
    with pytest.raises(FeedlineError, match=message):
        build(open_source(str(shard), "webdataset"), tmp_path / "out", SMALL, workers=1)


def test_remote_manifests_are_asked_for_by_folder_and_not_by_shard(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(parent / "A"), "/g/A", recursive=True)
    for number in range(20):
        store.put(str(parent / "A" / "train" / "shard-000000.tar"), f"/g/A/train/more-{number}.tar")
    source = open_source("memory://g", "webdataset")
    assert len(source.inputs) > 20
    asked: list[str] = []
    real = type(store).info
    monkeypatch.setattr(
        type(store), "info", lambda self, path, **k: asked.append(path) or real(self, path, **k)
    )
    assert own_classes(source.root, source.inputs) == ("cat", "dog")
    assert 0 < len(asked) < 10


def test_index_takes_the_names_that_shards_of_ours_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, classes in (("A", ("ant", "bee")), ("B", ("cat", "dog"))):
        write_images(tmp_path / name, 2, classes)
        assert main(["build", str(tmp_path / name), str(tmp_path / f"packed-{name}"), "--workers", "1"]) == 0

    def index(*arguments: str) -> tuple[str, ...]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert main(["index", *arguments, "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
        return Dataset.open(tmp_path / "out").classes

    def fails(*arguments: str) -> str:
        assert main(["index", *arguments, "--out", str(tmp_path / "failed"), "--jobs", "1"]) == 1
        assert not (tmp_path / "failed" / "dataset.json").exists()
        return capsys.readouterr().err.splitlines()[-1]

    shard = tmp_path / "packed-A" / "train" / "shard-000000.tar"
    other = tmp_path / "other.tar"
    shutil.copy(tmp_path / "packed-B" / "train" / "shard-000000.tar", other)
    assert index(str(shard)) == ("ant", "bee")
    assert f"label 0 is 'cat' in {other}, and 'ant' in another" in fails(str(shard), str(other))
    (tmp_path / "names.txt").write_text("small\nlarge\n")
    names = ("--classes", str(tmp_path / "names.txt"))
    assert index(str(shard), str(other), *names) == ("small", "large")
