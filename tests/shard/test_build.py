"""Builds: deterministic, resumable, honest about bad files; other readers give the source back."""

import hashlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import webdataset
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from PIL import Image

from shard.__main__ import main
from shard.build import build
from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.execute import start_workers
from shard.plan import Settings, Subset
from tests.conftest import write_images
from tests.shard.hostile import corpus

SMALL = Settings(shard_bytes=40_000)


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def sources(images: Path, split: str) -> dict[str, tuple[bytes, int]]:
    """Bytes and label by the path that the build records."""
    classes = sorted(folder.name for folder in (images / split).iterdir())
    return {
        path.relative_to(images).as_posix(): (path.read_bytes(), classes.index(path.parent.name))
        for path in (images / split).rglob("*.jpg")
    }


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed") / "data"
    build(images, root, SMALL, workers=1)
    return root


def test_workers_change_no_byte(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    build(images, tmp_path / "data", SMALL, workers=3)
    assert digests(tmp_path / "data") == digests(undisturbed)
    assert len(list((undisturbed / "train").glob("*.tar"))) > 3


def test_the_seed_changes_the_order(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    build(images, tmp_path / "data", Settings(shard_bytes=40_000, seed=1), workers=1)
    first, second = (Dataset.open(root).split("train") for root in (undisturbed, tmp_path / "data"))
    assert sorted(first.crc32.tolist()) == sorted(second.crc32.tolist())
    assert first.crc32.tolist() != second.crc32.tolist()


@pytest.mark.parametrize("finished", [1, 3])
def test_a_killed_build_goes_on_and_ends_byte_identical(
    images: Path, undisturbed: Path, tmp_path: Path, finished: int, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    arguments = ["build", str(images), str(root), "--shard-bytes", "40kB", "--workers", "2"]
    command = [sys.executable, "-m", "tests.shard.paused", str(finished), *arguments]
    child = subprocess.Popen(command, start_new_session=True)
    while len(list(root.glob(".build/*.json"))) < finished:
        assert child.poll() is None, "ended before it stood still"
        time.sleep(0.002)
    child.kill()
    child.wait()
    with pytest.raises(FeedlineError, match="unfinished build"):
        Dataset.open(root)
    assert main(arguments) == 0
    assert "from the run before" in capsys.readouterr().out
    assert digests(root) == digests(undisturbed)
    deadline = time.monotonic() + 20
    while subprocess.run(["pgrep", "-g", str(child.pid)], capture_output=True).stdout:
        assert time.monotonic() < deadline, "workers outlived the killed build"
        time.sleep(0.05)


def test_ctrl_c_ends_cleanly_and_keeps_finished_shards(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    arguments = ["build", str(images), str(root), "--shard-bytes", "40kB", "--workers", "1"]
    command = [sys.executable, "-m", "tests.shard.paused", "1", *arguments]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(root.glob(".build/*.json")):
        assert child.poll() is None, "ended before it stood still"
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGINT)
    _, error = child.communicate()
    assert child.returncode == 130
    assert "Traceback" not in error
    assert "run the same command again" in error
    assert main(arguments) == 0
    assert digests(root) == digests(undisturbed)


def test_other_readers_give_back_the_source(images: Path, undisturbed: Path) -> None:
    for split in ("train", "val"):
        expected = sources(images, split)
        tars = sorted((undisturbed / split).glob("*.tar"))

        read = {}
        for sample in webdataset.WebDataset([str(t) for t in tars], shardshuffle=False, empty_check=False):
            read[json.loads(sample["json"])["source"]] = (sample["jpg"], int(sample["cls"]))
        assert read == expected

        read = {}
        pipe = Pipeline(batch_size=1, num_threads=1, device_id=None)
        with pipe:
            parts = fn.readers.webdataset(
                paths=[str(t) for t in tars],
                index_paths=[str(t.with_suffix(".idx")) for t in tars],
                ext=["jpg", "cls", "json"],
                missing_component_behavior="error",
            )
            pipe.set_outputs(*parts)
        pipe.build()
        for _ in expected:
            jpg, cls, about = (bytes(part.at(0)) for part in pipe.run())
            read[json.loads(about)["source"]] = (jpg, int(cls))
        assert read == expected

        read = {}
        for tar in tars:
            with tarfile.open(tar) as file:
                members = {m.name: file.extractfile(m).read() for m in file}  # type: ignore[union-attr]
                assert all(m.isdigit() and len(m) == 10 for m in {name.split(".")[0] for name in members})
            for name, data in members.items():
                if name.endswith(".json"):
                    stem = name[:-5]
                    read[json.loads(data)["source"]] = (members[f"{stem}.jpg"], int(members[f"{stem}.cls"]))
        assert read == expected


def test_headers_are_plain_ustar_and_hold_nothing_of_the_machine(undisturbed: Path) -> None:
    for path in undisturbed.rglob("*.tar"):
        data = path.read_bytes()
        with tarfile.open(path) as file:
            for member in file:
                header = data[member.offset : member.offset_data]
                assert (
                    len(header) == 512
                )  # no PAX header before it, which DALI's and others' indexes do not expect
                assert (header[156:157], header[257:265]) == (b"0", b"ustar\x0000")
                assert re.fullmatch(r"\d{10}\.(cls|jpg|json)", member.name)
                about = (member.mode, member.mtime, member.uid, member.gid, member.uname, member.gname)
                assert about == (0o444, 0, 0, 0, "", "")


def test_checksums_are_those_of_sha256sum(undisturbed: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=undisturbed, check=True)


def test_the_index_describes_the_images(undisturbed: Path) -> None:
    dataset = Dataset.open(undisturbed)
    assert dataset.classes == ("ant", "bee", "cat")
    split = dataset.split("train")
    for i in range(len(split)):
        data = split.shard_path(int(split.shard[i])).read_bytes()
        image = Image.open(io.BytesIO(data[split.offset[i] : split.offset[i] + split.size[i]]))
        assert image.size == (split.width[i], split.height[i])


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "odd"
    (root / "one").mkdir(parents=True)
    (root / "one" / "notes.txt").write_text("bring milk")
    (root / "one" / ".hidden").write_text("x")
    for name, file in corpus().items():
        (root / "one" / name).write_bytes(file.data)
    return root


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_bad_files_are_named_with_their_reason_and_the_rest_is_packed(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["build", str(odd), str(tmp_path / "data"), "--max-bad", "50%", "--shard-bytes", "100kB"]) == 0
    )
    said = capsys.readouterr()
    fates = {f"one/{name}": file.fate for name, file in corpus().items()}
    rejected = {row["source"]: row["reason"] for row in lines(tmp_path / "data" / "rejected.jsonl")}
    assert rejected.pop("one/notes.txt") == "not an image file name"
    assert rejected.keys() == {name for name, fate in fates.items() if fate.startswith("rejected")}
    for name, reason in rejected.items():
        assert f"rejected: {reason}".startswith(fates[name])
    assert "rejected one/notes.txt: not an image file name" in said.err
    assert "more, see rejected.jsonl" in said.err
    repaired: dict[str, str] = {}
    for row in lines(tmp_path / "data" / "repaired.jsonl"):
        kinds = filter(None, (repaired.get(row["source"]), row["kind"]))
        repaired[row["source"]] = ",".join(kinds)
    kept = {name for name, fate in fates.items() if fate == "kept"}
    assert repaired == {
        name: fate for name, fate in fates.items() if name not in kept and name not in rejected
    }
    about = Dataset.open(tmp_path / "data").manifest["splits"]["train"]
    assert (about["samples"], about["repaired"]) == (len(kept) + len(repaired), len(repaired))
    packed = {
        json.loads(s["json"])["source"]: s["jpg"]
        for s in webdataset.WebDataset(
            [str(path) for path in sorted((tmp_path / "data/train").glob("*.tar"))], shardshuffle=False
        )
    }
    assert {name: packed[name] for name in kept} == {name: (odd / name).read_bytes() for name in kept}
    assert main(["verify", str(tmp_path / "data"), "--decode", "--jobs", "1"]) == 0


def test_too_many_bad_files_end_the_build_and_it_can_go_on(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    bad = sum(file.fate.startswith("rejected") for file in corpus().values())
    assert main(["build", str(odd), str(root), "--max-bad", "2"]) == 1
    error = capsys.readouterr().err
    assert f"error: {bad} images rejected, more than the 2 that --max-bad allows" in error
    assert not (root / "dataset.json").exists()
    assert main(["build", str(odd), str(root), "--max-bad", str(bad)]) == 0
    assert "(1 from the run before)" in capsys.readouterr().out


def test_an_original_beside_its_image_is_no_bad_image(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 4, ("ant", "bee"))
    (tmp_path / "in" / "ant" / "000.Heic").write_bytes(b"x")
    (tmp_path / "in" / "bee" / "001.NEF").write_bytes(b"x")
    (tmp_path / "in" / "bee" / "002.heic").write_bytes(b"x")  # some converters append
    (tmp_path / "in" / "bee" / "002.jpg").rename(tmp_path / "in" / "bee" / "002.HEIC.jpg")
    result = build(tmp_path / "in", tmp_path / "data", workers=1, max_bad="0")
    assert (result.packed, result.rejected) == (8, 3)
    (tmp_path / "in" / "ant" / "bee").mkdir()
    (tmp_path / "in" / "ant" / "bee" / "000.heic").write_bytes(b"x")  # another photo: another folder
    with pytest.raises(FeedlineError, match=r"1 images rejected.*ant/bee/000\.heic"):
        build(tmp_path / "in", tmp_path / "other", workers=1, max_bad="0")


def test_photos_that_are_not_read_count_as_bad_and_other_files_do_not(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 4, ("ant", "bee"))
    for name in ("ant/Thumbs.db", "ant/notes.txt", "bee/labels.json"):
        (tmp_path / "in" / name).write_bytes(b"x")
    assert build(tmp_path / "in", tmp_path / "free", workers=1, max_bad="0").rejected == 3
    for name in ("ant/1.HEIC", "bee/2.NEF"):
        (tmp_path / "in" / name).write_bytes(b"x")
    message = r"2 images rejected, more than the 1 .*ant/1\.HEIC: a format that is not read: save it as JPEG"
    with pytest.raises(FeedlineError, match=message):
        build(tmp_path / "in", tmp_path / "data", workers=1, max_bad="19%")
    assert not (tmp_path / "data" / "train").exists()  # it says so before it packs
    result = build(tmp_path / "in", tmp_path / "data", workers=1, max_bad="20%")  # of 8 + 2
    assert (result.packed, result.rejected) == (8, 5)
    # Together with what the packing rejects; those of the whole are not held against a part of it.
    (tmp_path / "in" / "ant" / "damaged.jpg").write_bytes(b"x")
    with pytest.raises(FeedlineError, match="3 images rejected, more than the 2"):
        build(tmp_path / "in", tmp_path / "both", workers=1, max_bad="2")
    (tmp_path / "in" / "ant" / "damaged.jpg").unlink()
    part = Settings(subset=Subset(classes=1, per_class=2))
    assert build(tmp_path / "in", tmp_path / "part", part, workers=1, max_bad="20%").packed == 2


def test_a_complete_dataset_is_left_alone_and_another_needs_overwrite(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    arguments = ["build", str(images), str(root), "--shard-bytes", "40kB", "--workers", "1"]
    assert main(arguments) == 0
    before = digests(root)
    assert main(arguments) == 0
    assert "already complete, 84 samples" in capsys.readouterr().out
    assert digests(root) == before
    assert main([*arguments, "--seed", "5"]) == 1
    assert "use --overwrite to replace it" in capsys.readouterr().err
    assert digests(root) == before
    assert main([*arguments, "--seed", "5", "--overwrite"]) == 0
    assert Dataset.open(root).manifest["settings"]["seed"] == 5


def test_a_full_disk_is_one_line_and_a_rerun_finishes(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    arguments = ["build", str(images), str(root), "--shard-bytes", "40kB"]

    def limit() -> None:  # a file may not grow beyond this, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    failed = subprocess.run(
        [sys.executable, "-m", "shard", *arguments], capture_output=True, text=True, preexec_fn=limit
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: cannot write ")
    assert "make room and run the same command again" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert main(arguments) == 0
    assert digests(root) == digests(undisturbed)


def test_a_vanished_source_file_stops_the_build(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    write_images(copy, 4)
    from shard import build as module

    real = module.plan
    monkeypatch.setattr(module, "plan", lambda *a: (real(*a), (copy / "ant" / "001.jpg").unlink())[0])
    with pytest.raises(FeedlineError, match=r"cannot read .*ant/001.jpg: No such file"):
        build(copy, tmp_path / "data", workers=1)
    assert not (tmp_path / "data" / "dataset.json").exists()


def test_shard_needs_neither_torch_nor_dali() -> None:
    code = "import sys, shard.commands; sys.exit(bool({'torch', 'nvidia.dali', 'webdataset'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ctrl_c_reaches_no_worker_even_while_it_imports() -> None:
    mine = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with start_workers(2) as pool:
        blocked = pool.executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()
    assert signal.SIGINT in blocked
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mine
