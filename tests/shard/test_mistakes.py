"""What users get wrong ends in one line that says what to do."""

import fcntl
import shutil
from pathlib import Path

import pytest

from shard.__main__ import main
from shard.dataset import Dataset
from shard.errors import FeedlineError
from tests.conftest import write_images


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["build", *arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_sources_that_cannot_be_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert "does not exist; give a folder" in fails(capsys, str(tmp_path / "nowhere"), out)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no class folders" in fails(capsys, str(empty), out)
    (empty / "cats").mkdir()
    assert "class folder" in fails(capsys, str(empty), out)
    source = tmp_path / "source"
    write_images(source / "train", 2)
    write_images(source / "val", 2, ("ant", "bee", "dog"))
    error = fails(capsys, str(source), out)
    assert "lacks cat and has besides dog (1 missing, 1 extra)" in error
    shutil.rmtree(source / "val")
    (source / "extra").mkdir()
    assert "also extra" in fails(capsys, str(source), out)
    assert not Path(out).exists()


def test_destinations_that_cannot_be_written(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "lies in the source" in fails(capsys, str(images), str(images / "out"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    assert "is not empty" in fails(capsys, str(images), str(tmp_path / "mine"))
    (tmp_path / "notes").write_text("…")
    assert "notes is a file; choose a new folder" in fails(capsys, str(images), str(tmp_path / "notes"))
    busy = tmp_path / "busy"
    (busy / ".build").mkdir(parents=True)
    with (busy / ".build" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another build is writing" in fails(capsys, str(images), str(busy))
    (busy / ".build" / "plan").write_text("of something else")
    assert "unfinished build of another source" in fails(capsys, str(images), str(busy))


def test_other_commands_say_where_they_cannot_write(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("…")
    commands = (["index", str(dataset.root / "train"), "--out"], ["unpack", str(dataset.root)])
    for command, place in zip(commands, ("notes", "notes/inside"), strict=True):
        assert main([*command, str(tmp_path / place)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: cannot make {tmp_path / place}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "0"], "workers is 0"),
        (["--max-bad", "few"], "max_bad is 'few'"),
        (["--max-bad", "-1"], "max_bad is '-1'"),
    ],
)
def test_values_out_of_range(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert message in fails(capsys, str(images), str(tmp_path / "out"), *flags)


@pytest.mark.parametrize("flags", [["--shard-bytes", "big"], ["--shard-bytes", "0"], ["--sede", "3"], []])
def test_wrong_usage_exits_with_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["build", *(["src", "dst", *flags] if flags else [])])
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no dataset"),
        ("{", "cannot read"),
        ('{"format": "feedline", "format_version": 99}', "has format and version"),
        ("[]", "has format and version None"),
    ],
)
def test_what_is_no_dataset_is_not_opened(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(FeedlineError, match=message):
        Dataset.open(tmp_path)


def test_an_unknown_split_is_told_with_the_known_ones(dataset: Dataset) -> None:
    with pytest.raises(FeedlineError, match="no split 'test'; it has train, val"):
        dataset.split("test")
