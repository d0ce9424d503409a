"""`python -m train eval`, on a run with weights that nobody has trained."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from loader import Loader
from shard.dataset import Dataset
from shard.errors import FeedlineError
from tests.train.judged import CLASSES, lively_run
from train.__main__ import main
from train.assess.samples import collect
from train.commands.eval import main as evaluate_command
from train.distributed import World
from train.evaluate import Result, evaluate
from train.inference import Network
from train.trained import load_trained

Start = Callable[[list[str], int], list["subprocess.Popen[bytes]"]]


@pytest.fixture(scope="module")
def run(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose network takes tiles for more than one class."""
    return lively_run(tmp_path_factory.mktemp("run") / "mine", dataset_dir)


@pytest.fixture(scope="module")
def done(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an evaluation by one process."""
    out = tmp_path_factory.mktemp("one")
    assert main(["eval", str(run), "--device", "cpu", "--batch-size", "8", "--out", str(out)]) == 0
    return out


def figures(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return values


def test_figures_are_those_of_the_runs_own_evaluation(run: Path, done: Path, dataset_dir: Path) -> None:
    trained = load_trained(run)
    network = Network(trained, torch.device("cpu"))
    with Loader(
        dataset_dir, "val", trained.config.input.eval_transform(), batch_size=8, threads=1
    ) as batches:
        theirs = evaluate(network.logits, batches, World())
    assert isinstance(theirs, Result)
    mine = figures(done)
    assert (mine["top1"], mine["top5"]) == pytest.approx((theirs.top1, theirs.top5))
    assert mine["loss"] == pytest.approx(theirs.loss)
    assert mine["samples"] == theirs.samples == 42
    assert 0 < mine["top1"] < mine["top5"] < 100
    assert mine["averaged"] is True
    low, high = mine["top1_interval"]
    assert low < mine["top1"] < high


def test_figures_are_there_with_all_other_files_or_not_at_all(
    run: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    out = shutil.copytree(done, tmp_path / "out")
    monkeypatch.setattr("train.assess.files.write_parquet", full)
    assert main(["eval", str(run), "--device", "cpu", "--batch-size", "8", "--out", str(out)]) == 1
    assert not (out / "evaluation.json").exists()
    assert (out / "predictions.parquet").exists()  # of the evaluation before


def test_files_fit_together(done: Path, dataset_dir: Path) -> None:
    table = pq.read_table(done / "predictions.parquet").to_pydict()
    split = Dataset.open(dataset_dir).split("val")
    assert table["id"] == list(range(42))
    assert table["key"] == [split.key(i) for i in range(42)]
    assert table["label"] == split.label.tolist()
    assert table["class"] == [CLASSES[i] for i in split.label.tolist()]
    assert table["source"][0].startswith(f"val/{table['class'][0]}/")
    assert table["right"] == [
        label == top[0] for label, top in zip(table["label"], table["top5_labels"], strict=True)
    ]
    assert [[CLASSES[i] for i in row] for row in table["top5_labels"]] == table["top5"]
    assert len({row[0] for row in table["top5"]}) > 1  # or equality on other ranks would say nothing
    assert all(row == sorted(row, reverse=True) and sum(row) <= 1.0001 for row in table["top5_probabilities"])
    matrix = np.load(done / "confusion.npy")
    assert matrix.sum() == 42
    assert 100 * np.trace(matrix) / 42 == pytest.approx(figures(done)["top1"])
    assert Image.open(done / "confusion.png").size > (300, 300)
    assert f"top-1 {figures(done)['top1']:.2f} %" in (done / "report.txt").read_text()


class InTurn(World):
    """One rank of several that are run one after the other: the last one gathers what all have given."""

    given: ClassVar[list[Any]] = []

    def gather(self, value: Any) -> list[Any]:
        self.given.append(value)
        return list(self.given)


@pytest.mark.parametrize("size", [2, 4, 5])
def test_every_sample_once_on_any_number_of_ranks(
    run: Path, done: Path, dataset_dir: Path, size: int
) -> None:
    trained = load_trained(run)
    network = Network(trained, torch.device("cpu"))
    InTurn.given.clear()
    for rank in range(size):
        with Loader(
            dataset_dir, "val", trained.config.input.eval_transform(),
            batch_size=8, rank=rank, world_size=size, threads=1,
        ) as batches:  # fmt: skip
            whole = collect(network.logits, batches, InTurn(rank, size))
    assert len(InTurn.given) == size
    table = pq.read_table(done / "predictions.parquet").to_pydict()
    assert whole.ids.tolist() == table["id"]
    assert whole.top.tolist() == table["top5_labels"]
    np.testing.assert_allclose(whole.probabilities, table["top5_probabilities"], rtol=1e-5)
    np.testing.assert_allclose(whole.losses, table["loss"], rtol=1e-5)


def test_two_processes_write_the_same_figures(
    run: Path, done: Path, tmp_path: Path, start_ranks: Start
) -> None:
    flags = ["eval", str(run), "--device", "cpu", "--batch-size", "8", "--out", str(tmp_path / "two")]
    assert [rank.wait() for rank in start_ranks(flags, 2)] == [0, 0]
    assert figures(tmp_path / "two") == figures(done)


def test_labels_of_a_file_and_other_settings(run: Path, tmp_path: Path, done: Path) -> None:
    table = pq.read_table(done / "predictions.parquet").to_pydict()
    labels = {s: [*CLASSES] if s.endswith("/0.jpg") else [] for s in table["source"]}
    real = tmp_path / "real.json"
    real.write_text(json.dumps(labels))
    flags = ["--split", "val", "--real", str(real), "--weights", "plain", "--flip-tta", "--precision", "fp32"]
    assert main(["eval", str(run), "--device", "cpu", *flags, "--out", str(tmp_path / "out")]) == 0
    found = figures(tmp_path / "out")
    assert found["real"] == {"file": str(real), "samples": 6, "left_out": 36, "top1": 100, "top5": 100}
    assert (found["averaged"], found["flip_tta"], found["precision"]) == (False, True, "fp32")
    assert found["loss"] != figures(done)["loss"]


def test_a_label_is_for_one_image(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = tmp_path / "real.json"
    real.write_text(json.dumps({"0.jpg": "class1"}))
    monkeypatch.setattr(Network, "logits", Mock(side_effect=AssertionError("too late")))
    flags = ["eval", str(run), "--device", "cpu", "--real", str(real), "--out", str(tmp_path / "out")]
    assert main(flags) == 1
    error = capsys.readouterr().err
    assert "one label for '0.jpg', the name of several images of the split (val/class" in error


def test_where_files_cannot_go_is_told_before_the_work_and_figures_come_before_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["eval", str(run), "--device", "cpu", "--out"]
    monkeypatch.setattr("train.assess.files.write_parquet", Mock(side_effect=OSError(28, "No space left")))
    assert main([*flags, str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "macro average" in said.out
    assert said.err == f"error: cannot write {tmp_path}/out/predictions.parquet: No space left\n"
    monkeypatch.setattr(Network, "logits", Mock(side_effect=AssertionError("too late")))
    (tmp_path / "file").touch()
    assert main([*flags, str(tmp_path / "file")]) == 1
    assert f"cannot write into {tmp_path}/file: File exists; give another --out" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert main([*flags, str(tmp_path / "out")]) == 1
    assert "no permission, or read-only; give another --out" in capsys.readouterr().err


def test_default_folder_and_what_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--device", "cpu"]) == 0
    assert (run / "eval" / "dataset-val-best" / "evaluation.json").exists()
    out = capsys.readouterr().out
    assert "averaged weights after epoch 3" in out
    assert "macro average" in out
    assert "predictions.parquet" in out
    assert main(["eval", str(run), "--device", "cpu", "--flip-tta"]) == 0
    assert not figures(run / "eval" / "dataset-val-best")["flip_tta"]  # compare and report look for this one
    assert figures(run / "eval" / "dataset-val-best-mirrored")["flip_tta"]


def test_another_runs_checkpoint_does_not_take_the_place_of_the_runs_own(
    dataset_dir: Path, tmp_path: Path
) -> None:
    mine, other = (lively_run(tmp_path / name, dataset_dir) for name in ("a", "b"))
    (tmp_path / "elsewhere").mkdir()
    for run in (mine, other):  # a link stays the run's, and has its name
        best = run / "checkpoints" / "best.pt"
        best.symlink_to(best.rename(tmp_path / "elsewhere" / f"{run.name}.pt"))
    for flags in ([], ["--checkpoint", str(other / "checkpoints" / "best.pt")]):
        assert main(["eval", str(mine), "--device", "cpu", *flags]) == 0
    own = {path.name: figures(path)["own_checkpoint"] for path in (mine / "eval").iterdir()}
    assert own == {"dataset-val-best": True, "dataset-val-best-of-b": False}


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--split", "test"], "has no split 'test'"),
        (["--data", "/nowhere"], "/nowhere is no dataset"),
        (["--checkpoint", "last"], "there is no checkpoint"),
        (["--real", "/nowhere.json"], "cannot read the labels /nowhere.json"),
        (["--precision", "fp16"], "precision is 'fp16', which needs a GPU"),
    ],
)
def test_wrong_values_are_one_line(
    run: Path, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run), "--device", "cpu", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert reason in error
    assert error.count("\n") == 1


def test_a_dataset_of_other_classes(run: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--data", str(dataset.root), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "has 3 classes and" in error
    assert "the first 'ant'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "flags", [["--batch-size", "0"], ["--nonsense"], ["--weights", "best"], ["--seed", "-1"], []]
)
def test_wrong_flags(run: Path, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        evaluate_command([str(run), *flags] if flags else [])
    assert error.value.code == 2


def test_output_that_is_not_finite(run: Path, dataset_dir: Path) -> None:
    with (
        Loader(
            dataset_dir, "val", load_trained(run).config.input.eval_transform(), batch_size=8, threads=1
        ) as batches,
        pytest.raises(
            FeedlineError, match=r"not finite for 42 of 42 samples, the first with the key 0000000000"
        ),
    ):
        collect(lambda images: torch.full((len(images), 6), float("nan")), batches, World())
