"""What a run must not overwrite or remove: files that are not a run's, and the only weights of one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shard.errors import FeedlineError
from tests.train.runs import make_run
from train import checkpoint
from train.__main__ import main
from train.claim import require_free, require_kept
from train.pretrained import FROM_TIMM
from train.run_folder import RunFolder


def files_in(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def write(root: Path, *names: str) -> RunFolder:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")
    return RunFolder(root)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run's folder as a copy without dot files leaves it, with best.pt alone."""
    return RunFolder(make_run(tmp_path / "run", "test_efficientnet", ("a", "b"), 24))


@pytest.mark.parametrize("resume", ["auto", "never", "{root}/checkpoints/other.pth"])
def test_a_project_folder_is_refused_and_stays_as_it_is(
    resume: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        tmp_path,
        "eval/my_code.py",
        "checkpoints/other.pth",
        "checkpoints/last.pt",
        "config.yaml",
        "notes.txt",
    )
    before = files_in(tmp_path)
    assert main([*flags, "--run-dir", str(tmp_path), "--resume", resume.format(root=tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: the run folder {tmp_path} is no run of ours, and holds config.yaml, checkpoints/, eval/, where a run "
        "writes; choose another --run-dir, or move them away\n"
    )
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "history.jsonl",
        "nonfinite.json",
        "trackers.json",
        "checkpoints/other.pth",
        "eval/my_code.py",
        "profile/trace.json.gz",
    ],
)
def test_any_one_file_in_the_way_is_enough(name: str, tmp_path: Path) -> None:
    with pytest.raises(FeedlineError, match=f"holds {name.split('/')[0]}/?, where"):
        require_free(write(tmp_path, name))


def test_other_files_and_empty_folders_are_in_nobodys_way(tmp_path: Path) -> None:
    require_free(RunFolder(tmp_path / "none"))
    folder = write(tmp_path, "train.py", "output.log", ".sweep", "tensorboard/events")
    with folder.locked():  # and killed there
        pass
    folder.evaluations.mkdir()
    (folder.checkpoints / "lost+found").mkdir(parents=True)  # a volume of its own
    require_free(folder)
    folder.config.mkdir()
    with pytest.raises(FeedlineError, match=r"holds config\.yaml/, where"):
        require_free(folder)


def test_what_a_run_is_recognised_by(run: RunFolder, tmp_path: Path) -> None:
    require_free(run)
    shutil.copytree(run.root, tmp_path / "no-config")
    (tmp_path / "no-config" / "config.yaml").write_text("learning_rate: 3")  # another program's
    with pytest.raises(FeedlineError, match="no run of ours"):
        require_free(RunFolder(tmp_path / "no-config"))
    run.best.write_bytes(b"weights of another program")
    with pytest.raises(FeedlineError, match="no run of ours"):
        require_free(run)
    (run.root / ".started").touch()  # killed in its first epoch, say
    require_free(run)


def test_a_fresh_run_removes_by_our_names_alone(run: RunFolder) -> None:
    ours = ["last.pt", "last.pt.tmp", "last.pt.damaged", "best.pt.abandoned", "step-000000010.pt"]
    theirs = ["kept.pt", "other.pth", "last.pth", "step-final.pt"]
    write(run.checkpoints, *ours, *theirs)
    assert [path.name for path in run.earlier()] == ["step-000000010.pt"]
    run.prepare(fresh=True)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == sorted(theirs)


def test_killed_while_it_clears_up_a_run_is_still_one(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run.root, "metrics.jsonl")

    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path == run.metrics:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            run.prepare(fresh=True)
    assert not run.best.exists()
    require_free(run)


def test_the_best_checkpoint_of_a_finished_run_is_not_overwritten(run: RunFolder) -> None:
    assert run.find("auto") == run.best  # killed while it saved for the first time
    run.summary.write_text("{}")
    with pytest.raises(FeedlineError, match=r"of which only .*best\.pt is left; choose another --run-dir"):
        run.find("auto")
    assert run.find("never") is None
    assert run.find(str(run.best)) == run.best
    with pytest.raises(FeedlineError, match="already holds a run"):
        run.find("other.pt")
    checkpoint.save(run.last, {"step": 40})
    assert run.find("auto") == run.last


def test_weights_that_a_fresh_run_would_remove_are_refused(run: RunFolder, tmp_path: Path) -> None:
    write(run.root, "checkpoints/kept.pt", "eval/w.pt", "w.pt")
    (tmp_path / "link.pt").symlink_to(run.best)
    for path in (run.root, run.best, tmp_path / "link.pt", run.evaluations / "w.pt"):
        with pytest.raises(FeedlineError, match=r"would remove .*\.pt; choose another --run-dir"):
            require_kept(run, path)
    for path in (None, FROM_TIMM, run.checkpoints / "kept.pt", run.root / "w.pt"):
        require_kept(run, path)


def test_a_run_on_its_own_weights_keeps_them(
    flags: list[str], run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    write(run.root, "eval/a/figures.json")
    before = files_in(run.root)
    given = ["--pretrained", str(run.root), "--run-dir", str(run.root), "--resume", "never"]
    assert main([*flags, *given]) == 1
    assert f"a fresh run in {run.root} would remove {run.best}" in capsys.readouterr().err
    assert {name: text for name, text in files_in(run.root).items() if name != ".lock"} == before
