"""Packing is measured in a folder of its own, and what goes wrong leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench import packing
from bench.__main__ import main
from bench.decode_ceiling import decode_all, decode_share
from bench.packing import CONTESTANTS
from bench.processes import running
from shard.errors import FeedlineError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that only write one file, and a decoder in this process."""

    def command(name: str, source: Path, out: Path) -> list[str]:
        return [sys.executable, "-S", "-c", f"import os; os.mkdir({str(out)!r}); print({name!r})"]

    monkeypatch.setattr(packing, "_command", command)
    monkeypatch.setattr(packing, "decode_all", lambda files, workers: 0.5)


def words(images: Path, scratch: Path, *more: str) -> list[str]:
    return ["packing", "--source", str(images / "train"), "--scratch", str(scratch), "--repeats", "2", *more]


@pytest.mark.usefixtures("quick")
def test_a_record_has_every_contestant_and_nothing_of_the_users_is_touched(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "scratch" / "packing" / "precious.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert main(words(images, tmp_path / "scratch", "--out", str(tmp_path / "record.json"))) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert list(record["contestants"]) == list(CONTESTANTS)
    assert record["settings"]["images"] == 63
    assert record["settings"]["page_cache"] == "hot"
    ceiling = record["contestants"]["ceiling"]
    assert (ceiling["images_per_s"], ceiling["peak_mib"]) == (126.0, None)
    tar = record["contestants"]["tar"]["seconds"]
    assert len(tar) == 2
    interval = record["ratio_intervals"]["header / tar"]
    assert interval["low"] <= record["ratios"]["header / tar"] <= interval["high"]
    assert "header / tar: " in capsys.readouterr().out
    assert mine.read_text() == "mine"
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["packing"]


@pytest.mark.usefixtures("quick")
def test_what_goes_wrong_leaves_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(files: list[Path], workers: int) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "decode_all", interrupt)
    assert main(words(images, tmp_path / "scratch")) == 130
    assert list((tmp_path / "scratch").iterdir()) == []
    (tmp_path / "file").touch()
    assert main(words(images, tmp_path / "file" / "below")) == 1
    assert "--scratch is" in capsys.readouterr().err.splitlines()[-1]


def test_the_ceiling_tells_a_file_that_is_no_jpeg(images: Path, tmp_path: Path) -> None:
    files = sorted((images / "val").glob("*/*"))
    decode_share(list(map(str, files)), threading.Barrier(1))
    (tmp_path / "not.jpg").write_text("no image")
    with pytest.raises(FeedlineError, match=r"is every file of --source a JPEG\?"):
        decode_all([*files, tmp_path / "not.jpg"], 1)


def test_a_command_that_fails_says_why_and_one_that_lasts_tells_its_memory() -> None:
    with pytest.raises(FeedlineError, match="ended with status 3: because"):
        packing._run([sys.executable, "-S", "-c", "import sys; sys.stderr.write('because'); sys.exit(3)"])
    seconds, peak_mib = packing._run([sys.executable, "-S", "-c", "import time; time.sleep(1.5)"])
    assert seconds >= 1.5
    assert peak_mib is not None
    assert peak_mib > 1


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_child_does_not_outlive_the_block(stubborn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.processes._END_S", 0.2)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if stubborn else ""
    code = f"import signal, time; {ignore}print('up', flush=True); time.sleep(60)"
    child: list[subprocess.Popen[str]] = []

    def block() -> None:
        with running([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE) as process:
            child.append(process)
            assert process.stdout is not None
            process.stdout.readline()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()
    assert child[0].wait() == -(signal.SIGKILL if stubborn else signal.SIGTERM)
