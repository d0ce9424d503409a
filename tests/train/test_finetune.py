"""Fine-tuning from one end to the other: other classes, a new head, a frozen beginning, weights and balance."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from shard.__main__ import main as shard_main
from train import before, checkpoint
from train.__main__ import main
from train.before import methods
from train.engine import Trainer
from train.export.formats import load_safetensors
from train.features import Features
from train.probe import fit
from train.recipes import recipe
from train.settle import start_line
from train.telemetry import MEASURED
from train.trained import load_trained

SIZES = {"ash": 30, "beech": 14, "fir": 8, "oak": 4}  # training images by class
EPOCH = 56 // 8  # steps


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of four classes of different sizes, in colours, 28 × 28; seven images of each in val."""
    root = tmp_path_factory.mktemp("trees")
    rng = np.random.default_rng(1)
    for label, (name, size) in enumerate(SIZES.items()):
        for split, count in (("train", size), ("val", 7)):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                tile = np.clip(rng.normal(60 + 50 * label, 40, (28, 28, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(tile).save(folder / f"{i}.jpg", quality=95)
    assert shard_main(["build", str(root / "images"), str(root / "dataset"), "--workers", "1"]) == 0
    return root / "dataset"


@pytest.fixture(scope="module")
def source(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a short training on the tiles."""
    run = tmp_path_factory.mktemp("source")
    assert main([*flags, "--epochs", "1", "--run-dir", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def tuning(trees: Path, source: Path) -> list[str]:
    """Flags of a fine-tuning that has everything."""
    text = (
        f"--data {trees} --recipe finetune --pretrained {source} --arch test_efficientnet --device cpu --batch-size 8 "
        "--epochs 3 --precision fp32 --loader-threads 1 --log-every 2 --lr 0.01 --drop-path 0 --augment none "
        "--head mlp --head-hidden 9 --head-drop 0.2 --freeze-epochs 1 --class-weights balanced --balance 0.5 "
        "--ema-decay 0.5"
    )
    return text.split()


@pytest.fixture(scope="module")
def tuned(tuning: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of that fine-tuning."""
    run = tmp_path_factory.mktemp("tuned")
    assert main([*tuning, "--run-dir", str(run)]) == 0
    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in (*MEASURED, "took_s")} for line in lines]


def test_images_are_those_of_the_run_that_is_tuned(tuned: Path, source: Path) -> None:
    mine, theirs = (yaml.safe_load((run / "config.yaml").read_text()) for run in (tuned, source))
    for key in ("size", "eval_size", "eval_resize", "interpolation"):
        assert mine["input"][key] == theirs["input"][key]
    assert mine["model"]["mean"] == theirs["model"]["mean"] == [0.5, 0.5, 0.5]
    assert mine["input"]["size"] == 24


def test_flags_stay_and_the_crop_keeps_its_share(tuning: list[str], tmp_path: Path) -> None:
    more = ["--size", "20", "--eval-size", "48", "--epochs", "1", "--before", "none", "--freeze-for", "0ep"]
    assert main([*tuning, *more, "--run-dir", str(tmp_path)]) == 0
    given = yaml.safe_load((tmp_path / "config.yaml").read_text())["input"]
    assert (given["size"], given["eval_size"], given["eval_resize"]) == (20, 48, 48)
    assert "before" not in json.loads((tmp_path / "summary.json").read_text())
    # Its own file is complete: nothing of it is looked up again.
    again = ["--config", str(tmp_path / "config.yaml"), "--run-dir", str(tmp_path / "again")]
    assert main(again) == 0
    assert yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())["input"] == given


def test_fine_tuning_of_nothing_is_told() -> None:
    assert start_line(recipe("finetune")).startswith(
        "warning: no --pretrained, so all weights start at random"
    )
    assert start_line(recipe("resnet50_imagenet")) == ""


def test_before_and_after_stand_side_by_side(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((tuned / "summary.json").read_text())
    found = summary["before"]
    assert set(found["top1"]) == {"knn", "probe"}
    assert (found["samples"], found["train_samples"]) == (28, 56)
    assert found["top1"]["probe"] > 60  # classes differ in brightness: any features tell them apart
    assert metrics(tuned)[0] == {k: v for k, v in found.items() if k != "took_s"} | {
        "kind": "before",
        "step": 0,
    }
    show = before.table(found, summary["best_top1"], summary["best_epoch"], summary["samples"])
    assert [line.split("  ")[0] for line in show.splitlines()[:3]] == [
        "before, kNN", "before, linear probe", "after, best",
    ]  # fmt: skip
    worse = before.table(found, 10.0, 1, 28)
    assert "the training took something away" in worse
    assert "took" not in before.table(found, 100.0, 1, 28)


def test_a_new_head_starts_as_the_probe(trees: Path, source: Path, tuned: Path, tmp_path: Path) -> None:
    text = (
        f"--data {trees} --recipe finetune --pretrained {source} --arch test_efficientnet --device cpu --batch-size 8 "
        f"--epochs 1 --precision fp32 --loader-threads 1 --drop-path 0 --lr 1e-9 --final-lr 0 --before none "
        f"--freeze all-but-head --run-dir {tmp_path}"
    )
    assert main(text.split()) == 0
    # A probe with a weaker penalty, but classes are easy.
    probe = json.loads((tuned / "summary.json").read_text())["before"]["top1"]["probe"]
    assert json.loads((tmp_path / "summary.json").read_text())["best_top1"] == probe


@pytest.mark.parametrize("stop", [3, EPOCH])
def test_it_goes_on_exactly_on_either_side_of_the_thaw(
    stop: int, tuning: list[str], tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = Trainer.train_step

    def killed(self: Trainer, batches: Any) -> None:
        train_step(self, batches)
        if self.state.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        assert main([*tuning, "--run-dir", str(tmp_path)]) == 143
    monkeypatch.setattr(before, "measure", None)  # once a run
    assert main([*tuning, "--run-dir", str(tmp_path)]) == 0
    mine, whole = (checkpoint.load(run / "checkpoints" / "last.pt") for run in (tmp_path, tuned))
    for part in ("model", "model_ema", "optimizer"):
        torch.testing.assert_close(mine[part], whole[part], rtol=0, atol=0)
    assert metrics(tmp_path) == metrics(tuned)


def test_the_body_waits_for_the_head_norms_and_average_included(
    tuning: list[str], source: Path, tmp_path: Path
) -> None:
    only = ["--freeze-for", "100%", "--epochs", "1", "--before", "none", "--keep-last", "9"]
    assert main([*tuning, *only, "--run-dir", str(tmp_path)]) == 0
    theirs = checkpoint.load(source / "checkpoints" / "best.pt")["model"]
    content = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    for part in ("model", "model_ema"):
        body = {k: v for k, v in content[part].items() if not k.startswith("classifier")}
        # The average's running mean of what never changes is rounded.
        torch.testing.assert_close(body, {k: theirs[k] for k in body}, rtol=1e-5, atol=1e-6)
    assert content["model"]["classifier.0.weight"].shape == (9, theirs["classifier.weight"].shape[1])


def test_commands_take_the_new_head(
    tuned: Path, trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = load_trained(tuned)
    images = torch.randint(0, 256, (7, 24, 24, 3), dtype=torch.uint8)
    expected = trained.net(images)
    photo = next((trees.parent / "images" / "val" / "oak").iterdir())
    assert main(["predict", str(tuned), str(photo), "--device", "cpu"]) == 0
    assert any(name in capsys.readouterr().out for name in SIZES)
    assert main(["embed", str(tuned), "--knn", "train", "--device", "cpu"]) == 0
    for kind in ("safetensors", "torch.export"):  # each compares what it wrote with the run
        path = tmp_path / kind
        assert main(["export", str(tuned), "--format", kind, "--out", str(path), "--samples", "7"]) == 0
    torch.testing.assert_close(load_safetensors(tmp_path / "safetensors")(images), expected)
    capsys.readouterr()
    assert main(["export", str(tuned), "--format", "timm", "--out", str(tmp_path / "t")]) == 1
    assert "--format timm: the run has --head mlp, which timm cannot build" in capsys.readouterr().err


def test_two_ranks_measure_weigh_and_balance_as_one(
    tuning: list[str], tmp_path: Path, start_ranks: Callable[..., Any]
) -> None:
    """Without batch norm and dropout two ranks learn what one does; before comes out alike in any case."""
    torch.manual_seed(0)
    weights = tmp_path / "gn.pth"
    torch.save(timm.create_model("test_efficientnet_gn", num_classes=3).state_dict(), weights)
    more = f"--arch test_efficientnet_gn --pretrained {weights} --head linear --size 24 --eval-size 24 --epochs 2"
    words = [w for w in tuning if w not in ("--head-hidden", "9", "--head-drop", "0.2")]
    words = [*words, *more.split(), "--mixup", "0.5"]
    assert main([*words, "--run-dir", str(tmp_path / "one")]) == 0
    assert [rank.wait() for rank in start_ranks([*words, "--run-dir", str(tmp_path / "two")], 2)] == [0, 0]
    one, two = (metrics(tmp_path / run) for run in ("one", "two"))
    assert one[0]["kind"] == "before"
    assert one[0] == two[0]
    losses = [[line["loss"] for line in run if line["kind"] == "train"] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_head_for_the_same_classes_is_judged_as_it_is(
    flags: list[str], source: Path, tmp_path: Path
) -> None:
    more = ["--pretrained", str(source), "--epochs", "1", "--lr", "0", "--run-dir", str(tmp_path)]
    assert main([*flags, *more]) == 0
    found = json.loads((tmp_path / "summary.json").read_text())["before"]
    assert found["top1"] == {"head": json.loads((source / "summary.json").read_text())["top1"]}
    assert found["samples"] == 42


def test_a_stop_while_before_is_measured_is_made_good(
    tuning: list[str], tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = before._features

    def interrupted(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return extract(*args)

    with monkeypatch.context() as patch:
        patch.setattr(before, "_features", interrupted)
        assert main([*tuning, "--run-dir", str(tmp_path)]) == 143
    assert main([*tuning, "--run-dir", str(tmp_path)]) == 0
    assert metrics(tmp_path) == metrics(tuned)


def test_how_it_is_measured() -> None:
    assert methods("auto", own_head=True) == ["head"]
    assert methods("auto", own_head=False) == ["knn", "probe"]
    assert methods("probe", own_head=True) == ["probe"]
    assert methods("none", own_head=False) == []


def test_a_part_of_large_splits_is_the_same_on_any_number_of_ranks(
    tuning: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(before, "MOST_TRAIN", 21)
    monkeypatch.setattr(before, "MOST_EVAL", 13)
    ids = []
    extract = before._features

    def seen(*args: Any) -> Features | None:
        found = extract(*args)
        assert found is not None
        ids.append(found.ids.tolist())
        return found

    monkeypatch.setattr(before, "_features", seen)
    for number, batch in enumerate((4, 64)):
        monkeypatch.setattr(before, "_BATCH", batch)
        run = ["--epochs", "1", "--freeze-for", "0ep", "--run-dir", str(tmp_path / str(number))]
        assert main([*tuning, *run]) == 0
    assert [len(part) for part in ids] == [21, 13, 21, 13]
    assert ids[:2] == ids[2:]
    summary = json.loads((tmp_path / "0" / "summary.json").read_text())
    assert (summary["before"]["train_samples"], summary["before"]["samples"]) == (21, 13)


@pytest.mark.parametrize("c", [1, 0.01])
def test_the_probe_is_scikit_learns_logistic_regression(c: float) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (4, 12))
    labels = rng.integers(0, 4, 400)
    values = (centres[labels] + rng.normal(0, 1.5, (400, 12))) * rng.uniform(0.1, 30, 12)
    scaler = StandardScaler().fit(values[:200])
    model = LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(values[:200]), labels[:200])
    theirs = 100 * model.score(scaler.transform(values[200:]), labels[200:])
    train, held_out = (
        Features(torch.arange(200), torch.from_numpy(labels[part]), torch.from_numpy(values[part]).float())
        for part in (slice(200), slice(200, None))
    )
    assert 50 < theirs < 95
    found = fit(train, 4, c)
    assert found.score(held_out) == pytest.approx(theirs, abs=0.51)  # one sample
    given = found(held_out.values).softmax(dim=1).numpy()
    assert np.allclose(given, model.predict_proba(scaler.transform(values[200:])), atol=0.01)
