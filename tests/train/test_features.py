"""Components of the step within whole trainings, through the command line's `main`."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import load_state_dict

from shard.dataset import Dataset
from train import checkpoint
from train.__main__ import main
from train.engine import Trainer
from train.inputs import InputConfig, first_images
from train.step import TrainStep


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def last(run: Path) -> dict[str, Any]:
    return checkpoint.load(run / "checkpoints" / "last.pt")


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    train_step = Trainer.train_step

    def wrapped(self: Trainer, batches: Any) -> None:
        train_step(self, batches)
        if self.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train_step", wrapped)


@pytest.mark.parametrize(("duration", "steps"), [("20st", 20), ("152sa", 19), ("1.2ep", 18), ("7st", 7)])
def test_a_training_may_end_within_an_epoch(
    duration: str, steps: int, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*flags, "--duration", duration, "--warmup", "10%", "--run-dir", str(tmp_path)]
    assert main(flags) == 0
    epochs = -(-steps // 15)
    assert [line["step"] for line in lines(tmp_path, "eval")] == [15, steps][2 - epochs :]
    assert lines(tmp_path, "train")[-1]["step"] <= steps
    assert last(tmp_path)["step"] == steps
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["epochs"]) == (steps, epochs)
    capsys.readouterr()
    assert main(flags) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize("step", [16, 20])
def test_a_training_that_ends_within_an_epoch_resumes(
    step: int, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*flags, "--duration", "20st", "--warmup", "4st"]
    assert main([*flags, "--run-dir", str(tmp_path / "whole")]) == 0
    stopped = [*flags, "--run-dir", str(tmp_path / "stopped")]
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert main(stopped) == 143
    assert main(stopped) == 0
    a, b = last(tmp_path / "whole"), last(tmp_path / "stopped")
    torch.testing.assert_close(a["model"], b["model"], rtol=0, atol=0)
    assert a["last_eval"] == b["last_eval"]


EVERYTHING = (
    "--ema-decay 0.9 --mixup 0.4 --cutmix 1.0 --loss bce --bce-threshold 0.2 --clip-grad 0.5 --flip-tta "
    "--optimizer lamb --lr 0.01 --start-size 16 --size-multiple 8 --freeze conv_stem --freeze-for 20st "
    "--drop-path 0.1"
)


def test_everything_at_once_resumes_exactly(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*flags, *EVERYTHING.split(), "--run-dir", str(whole)]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 18)
        assert main([*flags, *EVERYTHING.split(), "--run-dir", str(stopped)]) == 143
    assert main([*flags, *EVERYTHING.split(), "--run-dir", str(stopped)]) == 0
    a, b = last(whole), last(stopped)
    for part in ("model", "model_ema", "optimizer", "rng"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
    assert lines(whole, "eval") == lines(stopped, "eval")


def test_average_is_evaluated_and_saved_beside_the_weights_with_timms_keys(
    flags: list[str], tmp_path: Path
) -> None:
    assert main([*flags, "--ema-decay", "0.9", "--run-dir", str(tmp_path)]) == 0
    for line in lines(tmp_path, "eval"):
        assert line["ema_samples"] == line["samples"] == 42
    assert any(line["ema_loss"] != line["loss"] for line in lines(tmp_path, "eval"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best_top1"] == max(line["ema_top1"] for line in lines(tmp_path, "eval"))
    saved = last(tmp_path)
    assert saved["model"].keys() == saved["model_ema"].keys()
    bare = timm.create_model("test_efficientnet", num_classes=6)
    path = str(tmp_path / "checkpoints" / "last.pt")
    bare.load_state_dict(load_state_dict(path), strict=True)  # timm takes the average by itself
    assert torch.equal(bare.conv_stem.weight, saved["model_ema"]["conv_stem.weight"])
    assert not torch.equal(bare.conv_stem.weight, saved["model"]["conv_stem.weight"])


def test_progressive_sizes_reach_the_model(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward_backward = TrainStep.forward_backward

    def spy(self: TrainStep, images: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(images.shape[1])
        return forward_backward(self, images, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "forward_backward", spy)
    ramp = ["--start-size", "16", "--size-multiple", "4", "--ramp-from", "0ep", "--ramp-to", "2ep"]
    assert main([*flags, *ramp, "--run-dir", str(tmp_path)]) == 0
    assert seen == [16] * 15 + [20] * 15 + [24] * 15


def test_flip_tta_averages_both_sides(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*flags, "--epochs", "1", "--warmup-epochs", "0"]
    assert main([*flags, "--run-dir", str(tmp_path / "plain")]) == 0
    seen: list[torch.Tensor] = []
    predict = TrainStep.predict

    def spy(self: TrainStep, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return predict(self, images)

    monkeypatch.setattr(TrainStep, "predict", spy)
    assert main([*flags, "--flip-tta", "--run-dir", str(tmp_path / "flipped")]) == 0
    plain, flipped = (lines(tmp_path / run, "eval")[0]["loss"] for run in ("plain", "flipped"))
    assert plain != flipped
    assert all(torch.equal(a.flip(2), b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    torch.testing.assert_close(
        last(tmp_path / "plain")["model"], last(tmp_path / "flipped")["model"], rtol=0, atol=0
    )


def test_mixing_and_frozen_parts_reach_the_step(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed: list[bool] = []
    stems: list[torch.Tensor] = []
    forward_backward = TrainStep.forward_backward

    def spy(self: TrainStep, *args: Any, **kwargs: Any) -> torch.Tensor:
        mixed.append(bool((kwargs["mix"][:, 5] < 1).any()))
        stems.append(self.net.model.conv_stem.weight.detach().clone())
        return forward_backward(self, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "forward_backward", spy)
    more = "--mixup 1.0 --mix-until 30st --freeze all-but-head --freeze-for 20st"
    assert main([*flags, *more.split(), "--run-dir", str(tmp_path)]) == 0
    assert mixed == [True] * 30 + [False] * 15
    assert all(torch.equal(stems[0], stem) for stem in stems[:21])
    assert not torch.equal(stems[20], stems[21])


def test_two_ranks_mix_freeze_thaw_and_send_bf16(flags: list[str], tmp_path: Path, start_ranks: Any) -> None:
    """A network without batch norm learns the same on two ranks as alone, pairs of mixup included."""
    flags = [
        *flags,
        "--epochs",
        "1",
        "--warmup-epochs",
        "0",
        "--arch",
        "test_efficientnet_gn",
        "--mixup",
        "0.8",
    ]
    flags += ["--freeze", "all-but-head", "--freeze-for", "10st", "--ema-decay", "0.9"]
    assert main([*flags, "--run-dir", str(tmp_path / "one")]) == 0
    assert [r.wait() for r in start_ranks([*flags, "--run-dir", str(tmp_path / "two")], 2)] == [0, 0]
    one, two = (lines(tmp_path / run, "train") for run in ("one", "two"))
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-4)
    compressed = [*flags, "--compress-grads", "--run-dir", str(tmp_path / "bf16")]
    assert [r.wait() for r in start_ranks(compressed, 2)] == [0, 0]
    rounded = [line["loss"] for line in lines(tmp_path / "bf16", "train")]
    assert rounded == pytest.approx([line["loss"] for line in two], rel=0.02)
    assert rounded != [line["loss"] for line in two]


def test_first_images_are_as_they_are(dataset_dir: Path) -> None:
    config = InputConfig(size=24, batch_size=8, loader_threads=1)
    images = first_images(config, Dataset.open(dataset_dir), torch.device("cpu"))
    assert images.shape == (120, 24, 24, 3)
    assert images.float().std() > 10


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--flipp-tta", "there is no flag --flipp-tta; did you mean '--flip-tta'"),
        ("--epochs x", "duration is 'xep'"),
        (
            "--arch test_vit --model-args img_size=32 --size 32 --eval-size 32 --mixup 1 --batch-size 1",
            "at least 2 samples",
        ),
        ("--sync-bn", "sync_bn is on"),
        ("--arch test_efficientnet --model-args depth=3", "does not take"),
        (
            "--arch cifar_resnet9 --grad-checkpointing",
            "grad_checkpointing is on, but 'cifar_resnet9' has none",
        ),
        ("--arch test_vit --blurpool --img-size 24", "there is no flag --img-size"),
        ("--start-size 64", "start_size is 64, above size 24"),
    ],
)
def test_impossible_combinations_are_one_line(
    more: str, message: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, *more.split(), "--run-dir", str(tmp_path)]) in (1, 2)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
