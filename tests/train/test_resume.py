"""Where a run goes on: from checkpoints of its own past, after torchrun's restarts, without its pretrained weights."""

import json
from pathlib import Path

import pytest
import timm
import torch

from shard.errors import FeedlineError
from train import checkpoint
from train.__main__ import main
from train.engine import Trainer
from train.model import ModelConfig, make_model, statistics
from train.pretrained import FROM_TIMM
from train.run_folder import RunFolder
from train.stop import Stopped


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    made = RunFolder(tmp_path / "run")
    made.checkpoints.mkdir(parents=True)
    return made


def steps(folder: RunFolder) -> dict[str, int]:
    """Step of every checkpoint, by the file's name."""
    return {path.name: int(checkpoint.load(path)["step"]) for path in folder.checkpoints.iterdir()}


@pytest.mark.parametrize("named", ["other.pt", "run/checkpoints/best.pt", "auto"])
def test_after_torchruns_restart_the_newest_counts(folder: RunFolder, tmp_path: Path, named: str) -> None:
    checkpoint.save(tmp_path / "other.pt" if named == "other.pt" else folder.best, {"step": 10})
    resume = named if named == "auto" else str(tmp_path / named)
    folder.find(resume)
    folder.prepare(fresh=False)
    checkpoint.save(folder.last, {"step": 20})
    assert folder.find(resume) == folder.last


def test_torchrun_does_not_repeat_what_was_not_finite(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(folder.last, {"step": 20})
    folder.prepare(fresh=False)
    folder.nonfinite.write_text("{}")
    with pytest.raises(FeedlineError, match="torchrun starts a run again that was no longer finite"):
        folder.find("auto")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-8")  # somebody wants to try again
    assert folder.find("auto") == folder.last


def test_going_back_sets_later_checkpoints_aside(folder: RunFolder) -> None:
    for path, step in (
        (folder.at_step(10), 10),
        (folder.at_step(20), 20),
        (folder.best, 25),
        (folder.last, 30),
    ):
        checkpoint.save(path, {"step": step, "best_top1": 50.0, "best_epoch": 3})
    content = checkpoint.load(folder.at_step(20))
    folder.go_back_to(folder.at_step(20), content)
    assert steps(folder) == {
        "step-000000010.pt": 10, "step-000000020.pt": 20, "last.pt": 20, "best.pt.abandoned": 25,
        "last.pt.abandoned": 30,
    }  # fmt: skip
    assert content["best_top1"] == -1  # the next evaluation is the best again
    assert folder.find("auto") == folder.last


def test_going_back_to_the_best_keeps_it(folder: RunFolder) -> None:
    for path, step in ((folder.best, 25), (folder.at_step(28), 28), (folder.last, 30)):
        checkpoint.save(path, {"step": step, "best_top1": 50.0})
    content = checkpoint.load(folder.best)
    folder.go_back_to(folder.best, content)
    assert {k: v for k, v in steps(folder).items() if not k.endswith("abandoned")} == {
        "best.pt": 25,
        "last.pt": 25,
    }
    assert content["best_top1"] == 50


def test_a_run_that_went_back_is_the_run_that_never_went_on(flags: list[str], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert main([*flags, "--keep-last", "3", "--run-dir", str(run.root)]) == 0
    first = checkpoint.load(run.last)
    again = ["--keep-last", "3", "--run-dir", str(run.root), "--resume", str(run.at_step(15))]
    assert main([*flags, *again]) == 0
    second = checkpoint.load(run.last)
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    assert {k: v for k, v in steps(run).items() if k != "best.pt" and not k.endswith("abandoned")} == {
        "last.pt": 45, "step-000000030.pt": 30, "step-000000015.pt": 15,
    }  # fmt: skip


def test_patience_may_change_on_the_way(flags: list[str], tmp_path: Path) -> None:
    assert main([*flags, "--target", "0", "--run-dir", str(tmp_path)]) == 0  # ends after the first epoch
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["epoch"] == 1
    (tmp_path / "summary.json").unlink()
    assert main([*flags, "--target", "100.5", "--patience", "9", "--run-dir", str(tmp_path)]) == 0
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["epoch"] == 3


def test_a_run_that_patience_has_ended_goes_on_with_more_of_it(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    impatient = ["--patience", "1", "--min-change", "200"]  # points of top-1: nothing is an improvement
    flags = [*flags, "--run-dir", str(tmp_path)]
    for _ in range(2):
        assert main([*flags, *impatient]) == 0
        assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 30
    assert "holds this run, finished" in capsys.readouterr().out
    assert main([*flags, "--patience", "5"]) == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    assert (found["steps"], found["ended"]) == (45, "")


def test_killed_before_its_summary_a_run_that_went_on_does_not_show_the_one_before(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*flags, "--run-dir", str(tmp_path)]
    assert main([*flags, "--target", "0"]) == 0  # ends after the first epoch

    def killed(*arguments: object, **named: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "summarize", killed)
        with pytest.raises(RuntimeError):
            main(flags)
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["epoch"] == 3
    assert main(flags) == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    assert (found["steps"], found["ended"]) == (45, "")


def test_pretrained_weights_may_be_gone_when_the_run_goes_on(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, run = tmp_path / "weights.pth", tmp_path / "run"
    torch.save(timm.create_model("test_efficientnet", num_classes=6).state_dict(), weights)
    flags = [*flags, "--pretrained", str(weights), "--run-dir", str(run)]

    def leave(self: Trainer) -> None:
        self.stop.received = 15

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "report", leave)
        assert main(flags) == 143
    weights.unlink()
    assert main(flags) == 0


def test_ranks_leave_after_the_checkpoint_is_written() -> None:
    """Whoever leaves first makes torchrun end the others."""
    told: list[str] = []
    trainer = Trainer.__new__(Trainer)
    trainer.saver = type("Writes", (), {"wait": lambda self: told.append("written")})()
    trainer.world = type("Meets", (), {"gather": lambda self, value: told.append("met")})()
    trainer.stop = type("Agreed", (), {"agreed": 15})()
    with pytest.raises(Stopped):
        trainer.leave()
    assert told == ["written", "met"]


def test_images_are_normalised_as_the_pretrained_weights_were_trained(
    tmp_path: Path, flags: list[str]
) -> None:
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert statistics(ModelConfig(arch="vit_small_patch16_224")) == imagenet  # from scratch
    assert statistics(ModelConfig(arch="vit_small_patch16_224", pretrained=FROM_TIMM)) == half
    given = ModelConfig(arch="vit_small_patch16_224", pretrained=FROM_TIMM, mean=(0.1, 0.2, 0.3))
    assert statistics(given) == ((0.1, 0.2, 0.3), half[1])
    assert main([*flags, "--epochs", "1", "--run-dir", str(tmp_path)]) == 0  # the recipe has 0.5
    ours = ModelConfig(arch="test_efficientnet", pretrained=tmp_path / "checkpoints" / "last.pt")
    assert statistics(ours) == half
    net = make_model(ours, 6, torch.device("cpu"))
    torch.testing.assert_close(net.scale.flatten(), torch.full((3,), 2 / 255))
