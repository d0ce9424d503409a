"""What users get wrong ends in one line that says what to do."""

import errno
import fcntl
import os
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
        ('{"format": "feedline", "format_version": 2}', "has no 'classes'; restore it"),
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


@pytest.mark.parametrize("how", ["another program's", "indexed in place"])
def test_overwrite_removes_no_shards_that_somebody_else_made(
    dataset: Dataset, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(dataset.root / "train", mine / "train", ignore=shutil.ignore_patterns("index.parquet"))
    if how == "indexed in place":
        assert main(["index", str(mine / "train"), "--out", str(mine), "--jobs", "1"]) == 0
    else:
        (mine / "dataset.json").write_text('{"name": "my thesis"}')
    before = {path.name: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    assert "so nothing there is removed" in fails(capsys, str(images), str(mine), "--overwrite")
    assert {path.name: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == before


def test_overwrite_replaces_a_dataset_whose_manifest_is_damaged(images: Path, tmp_path: Path) -> None:
    arguments = ["build", str(images), str(tmp_path / "data"), "--workers", "1"]
    assert main(arguments) == 0
    (tmp_path / "data" / "dataset.json").write_text("{")
    assert main([*arguments, "--overwrite"]) == 0
    assert Dataset.open(tmp_path / "data").split_names == ("train", "val")


def test_odd_names_in_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("new\nline", "<b>&amp;", "u2028\u2028x", "per%cent", "-dash", "back\\slash", "🐱")
    write_images(tmp_path / "in", 1, names)
    os.mkfifo(tmp_path / "in" / "🐱" / "pipe.jpg")  # reading it would wait forever
    data, back = str(tmp_path / "data"), tmp_path / "back"
    assert main(["build", str(tmp_path / "in"), data, "--workers", "1"]) == 0
    assert "rejected 🐱/pipe.jpg: not a file" in capsys.readouterr().err
    assert Dataset.open(data).classes == tuple(sorted(names))
    for command in (
        ["verify", data, "--jobs", "1"],
        ["info", data, "--out", data + "-page"],
        ["diff", data, data],
    ):
        assert main(command) == 0
    assert main(["unpack", data, str(back)]) == 0
    for name in names:
        assert (back / "train" / name / "000.jpg").read_bytes() == (
            tmp_path / "in" / name / "000.jpg"
        ).read_bytes()
    capsys.readouterr()
    os.mkdir(os.fsencode(tmp_path / "in") + b"/caf\xe9")
    assert r"not UTF-8: b'caf\xe9'; rename it" in fails(capsys, str(tmp_path / "in"), data + "2")


def test_a_class_list_of_another_editor(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1, ("ant", "u2028\u2028x"))
    (tmp_path / "classes.txt").write_bytes("\ufeffu2028\u2028x\r\nant\r\n".encode())
    flags = ["--classes", str(tmp_path / "classes.txt"), "--workers", "1"]
    assert main(["build", str(tmp_path / "in"), str(tmp_path / "data"), *flags]) == 0
    assert Dataset.open(tmp_path / "data").classes == ("u2028\u2028x", "ant")


def test_what_the_system_refuses_is_one_line(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Tests may run as root, whom permissions do not stop.
    refused = PermissionError(errno.EACCES, "Permission denied", "somewhere/file")
    opened = Path.open

    def refuse(path: Path, *arguments: object, **more: object) -> object:
        if path.suffix in (".tar", ".parquet") and str(path).startswith(str(dataset.root)):
            raise refused
        return opened(path, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("shard.commands.info", lambda dataset: (_ for _ in ()).throw(refused))
    assert main(["info", str(dataset.root)]) == 1
    assert capsys.readouterr().err == "error: cannot use somewhere/file: Permission denied\n"
    assert main(["unpack", str(dataset.root), str(tmp_path / "out"), "--splits", "val"]) == 1
    assert "index.parquet" in capsys.readouterr().err
    assert main(["verify", str(dataset.root), "--jobs", "1"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert f"cannot read {dataset.root}/val/index.parquet: Permission denied" in said
