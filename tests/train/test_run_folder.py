from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shard.errors import FeedlineError
from train import checkpoint
from train.run_folder import RunFolder, read_if_there


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    made = RunFolder(tmp_path / "run")
    made.prepare(fresh=True)
    return made


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def test_auto_takes_the_newest(folder: RunFolder) -> None:
    assert folder.find("auto") is None
    for path, step in ((folder.at_step(10), 10), (folder.at_step(20), 20), (folder.last, 30)):
        checkpoint.save(path, {"step": step})
    assert folder.find("auto") == folder.last
    assert folder.find("never") is None


def test_evaluations_go_with_the_network_that_they_are_of(folder: RunFolder) -> None:
    def evaluate() -> None:
        (folder.evaluations / "a-val-best").mkdir(parents=True)

    for path, step in ((folder.at_step(10), 10), (folder.best, 5), (folder.last, 30)):
        checkpoint.save(path, {"step": step, "best_top1": 50.0, "best_epoch": 1})
    evaluate()
    folder.prepare(fresh=False)
    folder.go_back_to(folder.at_step(10), checkpoint.load(folder.at_step(10)))
    assert folder.evaluations.exists()  # the best one came earlier, and stays
    checkpoint.save(folder.best, {"step": 20})
    for _ in range(2):
        checkpoint.save(folder.last, {"step": 30})
        folder.go_back_to(folder.at_step(10), checkpoint.load(folder.at_step(10)))
        assert not folder.evaluations.exists()
        assert (folder.root / "eval.abandoned" / "a-val-best").exists()
        evaluate()
        checkpoint.save(folder.best, {"step": 20})
    folder.prepare(fresh=True)
    assert not folder.evaluations.exists()


def test_auto_falls_back_to_the_newest_whole_one_and_says_so(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {folder.at_step(10): 10, folder.at_step(20): 20, folder.best: 15, folder.last: 30}
    for path, step in files.items():
        checkpoint.save(path, {"step": step})
    damage(folder.last)
    assert folder.find("auto") == folder.at_step(20)
    err = capsys.readouterr().err
    assert f"{folder.last} cannot be read" in err
    assert f"going on from the newest whole one, {folder.at_step(20)}" in err
    assert not folder.last.exists()  # set aside, so that nothing takes it for a checkpoint
    assert (folder.checkpoints / "last.pt.damaged").exists()

    damage(folder.at_step(20))
    assert folder.find("auto") == folder.best  # step 15, newer than the 10 of the other
    damage(folder.best)
    damage(folder.at_step(10))
    with pytest.raises(FeedlineError, match="no other whole checkpoint; start afresh with --resume never"):
        folder.find("auto")


def test_killed_between_the_renames_of_a_save(folder: RunFolder) -> None:
    checkpoint.save(folder.last, {"step": 10})
    folder.last.replace(folder.at_step(10))
    (folder.checkpoints / "last.pt.tmp").write_bytes(b"whole or not, nobody knows")
    assert folder.find("auto") == folder.at_step(10)


def test_a_named_checkpoint_that_is_damaged_is_an_error(folder: RunFolder, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    checkpoint.save(other, {"step": 10})
    damage(other)
    assert folder.find(str(other)) == other
    with pytest.raises(FeedlineError, match=r"other\.pt cannot be read"):
        checkpoint.load(other)


def test_what_only_looks_at_a_run_says_what_to_do_with_a_damaged_checkpoint(folder: RunFolder) -> None:
    assert read_if_there(folder.best) is None
    checkpoint.save(folder.best, {"step": 10})
    assert read_if_there(folder.best) == checkpoint.load(folder.best)
    damage(folder.best)
    with pytest.raises(
        FeedlineError, match=r"best\.pt cannot be read.*; put a whole copy in its place, or remove it"
    ):
        read_if_there(folder.best)


def test_never_means_never_at_the_first_start_only(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(folder.last, {"step": 10})
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    assert folder.find("never") is None
    folder.prepare(fresh=True)
    assert not folder.last.exists()
    checkpoint.save(folder.last, {"step": 20})
    assert folder.find("never") == folder.last  # restarted by the same torchrun
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-8")
    assert folder.find("never") is None


def test_a_second_run_in_the_folder_is_refused(folder: RunFolder) -> None:
    code = (
        "import sys; from pathlib import Path; from train.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with (
            pytest.raises(FeedlineError, match=f"process {other.pid} on .* is training in .*run"),
            folder.locked(wait_s=0),
        ):
            pass
        other.kill()  # the lock goes with the process, however it ends
    with folder.locked(wait_s=0):
        pass
