"""A training on images with two independent attributes, and every command that takes its run."""

from __future__ import annotations

import io
import json
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, classification_report

from loader import Loader
from shard.__main__ import main as shard_main
from train.__main__ import main
from train.assess import multi_label
from train.cli import flag_names
from train.distributed import World
from train.evaluate import evaluate
from train.inference import Network
from train.multi_label import MultiLabelResult
from train.predict import Prediction
from train.predict.writers import write_table
from train.sweep.plan import Plan, check_plan
from train.sweep.space import parse_search
from train.trained import load_trained

SIDE = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of grey tiles that are red, or have a white mark at the left, or both, or neither: 96 and 30."""
    root = tmp_path_factory.mktemp("attributes")
    rng = np.random.default_rng(0)
    rows = ["path,label,split"]
    for i in range(126):
        pixels = rng.normal(100, 60, (SIDE, SIDE, 3))
        red, left = rng.random(2) < 0.5
        pixels[..., 0] += 21 * red
        pixels[4:12, 1:5] += 45 * left
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / f"{i}.jpg", quality=95)
        names = "|".join(name for name, there in (("red", red), ("left", left)) if there)
        rows.append(f"{i}.jpg,{names},{'train' if i < 96 else 'val'}")
    (root / "list.csv").write_text("\n".join(rows))
    command = ["build", str(root / "list.csv"), str(root / "data"), "--multi-label", "--workers", "1"]
    assert shard_main(command) == 0
    return root / "data"


@pytest.fixture(scope="module")
def flags(data: Path) -> list[str]:
    text = (
        f"--data {data} --recipe digits --device cpu --arch test_efficientnet --batch-size 8 --size {SIDE} --pad 0 "
        f"--hflip 0 --eval-size {SIDE} --eval-resize {SIDE} --epochs 4 --warmup-epochs 1 --lr 0.02 --log-every 4 "
        "--loader-threads 1"
    )
    return text.split()


@pytest.fixture(scope="module")
def run(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    assert main([*flags, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def judged(run: Path) -> Path:
    """Folder of its evaluation."""
    assert main(["eval", str(run), "--device", "cpu", "--batch-size", "8"]) == 0
    return run / "eval" / "data-val-best"


def figures(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return values


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Error of a command, which is one line."""
    capsys.readouterr()
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def test_it_learns_both_attributes(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_map"] > 90
    assert not {"top1", "best_top1", "top5"} & set(summary)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    maps = [line["map"] for line in lines if line["kind"] == "eval"]
    assert max(maps) == summary["best_map"]
    assert load_trained(run).multi_label


def test_a_run_that_was_stopped_goes_on_to_the_same_figures(
    flags: list[str], run: Path, tmp_path: Path
) -> None:
    saving = ["--checkpoint-every", "7", "--keep-last", "9", "--run-dir"]
    assert main([*flags, *saving, str(tmp_path / "whole")]) == 0
    middle = tmp_path / "whole" / "checkpoints" / "step-000000028.pt"
    assert main([*flags, "--resume", str(middle), "--run-dir", str(tmp_path / "again")]) == 0
    one, other = (json.loads((path / "summary.json").read_text()) for path in (run, tmp_path / "again"))
    for key in ("map", "best_map", "best_epoch", "loss"):
        assert one[key] == other[key]


def test_the_evaluation_is_scikit_learns_on_the_same_predictions(run: Path, judged: Path) -> None:
    found = figures(judged)
    table = pq.read_table(judged / "predictions.parquet").to_pydict()
    classes = list(found["classes"])
    assert classes == ["left", "red"]
    targets = np.array([[name in of for name in classes] for of in table["classes"]])
    predicted = np.array([[name in of for name in classes] for of in table["predicted"]])
    shares = np.array(table["probabilities"], np.float32)
    np.testing.assert_array_equal(predicted, shares >= 0.5)
    assert found["map"] == pytest.approx(100 * average_precision_score(targets, shares, average="macro"))
    theirs = classification_report(
        targets, predicted, output_dict=True, zero_division=0, target_names=classes
    )
    names = (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score"), ("support", "support"))
    for name in classes:
        assert [found["classes"][name][mine] for mine, _ in names] == pytest.approx(
            [theirs[name][other] for _, other in names]
        )
    for average in ("micro", "macro", "weighted", "samples"):
        assert [found["averages"][average][mine] for mine, _ in names] == pytest.approx(
            [theirs[f"{average} avg"][other] for _, other in names]
        )
    assert found["map"] == pytest.approx(json.loads((run / "summary.json").read_text())["best_map"])
    assert not (judged / "confusion.npy").exists()


class Meeting:
    """Where two ranks, threads of this process, exchange what they have."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)
        self.values: list[Any] = [None, None]

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found


@dataclass(frozen=True, slots=True)
class Thread(World):
    """A rank that meets the other one."""

    meeting: Meeting = field(default_factory=Meeting)

    def gather(self, value: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, value)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        first, second = self.meeting.exchange(self.rank, tensor.clone())
        return tensor.copy_(first + second)


def test_two_ranks_find_what_one_does(run: Path, data: Path) -> None:
    trained = load_trained(run)
    network = Network(trained, torch.device("cpu"))

    def judge(world: World) -> tuple[MultiLabelResult, multi_label.MultiLabelSamples]:
        transform = trained.config.input.eval_transform()
        with Loader(
            data, "val", transform, batch_size=8, threads=1, rank=world.rank, world_size=world.size
        ) as batches:
            result = evaluate(network.logits, batches, world)
            assert isinstance(result, MultiLabelResult)
            return result, multi_label.collect(network.logits, batches, world)

    meeting, found = Meeting(), {}
    ranks = [Thread(rank=rank, size=2, meeting=meeting) for rank in range(2)]
    threads = [threading.Thread(target=lambda w=w: found.update({w.rank: judge(w)})) for w in ranks]
    for thread in threads:
        thread.start()
    alone = judge(World())
    for thread in threads:
        thread.join()
    for result, samples in found.values():
        assert (result.map, result.samples) == (alone[0].map, 30)
        assert result.loss == pytest.approx(alone[0].loss)
        np.testing.assert_array_equal(samples.ids, np.arange(30))
        np.testing.assert_array_equal(samples.targets, alone[1].targets)
        np.testing.assert_allclose(samples.probabilities, alone[1].probabilities, rtol=1e-5)


def test_classes_in_another_order_are_matched_by_name(
    run: Path, data: Path, tmp_path: Path, judged: Path
) -> None:
    (tmp_path / "names.txt").write_text("red\nleft\n")
    command = [
        "build",
        str(data.parent / "list.csv"),
        str(tmp_path / "data"),
        "--multi-label",
        "--workers",
        "1",
    ]
    assert shard_main([*command, "--classes", str(tmp_path / "names.txt")]) == 0
    out = tmp_path / "out"
    assert (
        main(["eval", str(run), "--data", str(tmp_path / "data"), "--device", "cpu", "--out", str(out)]) == 0
    )
    assert figures(out)["map"] == pytest.approx(figures(judged)["map"])
    for name, scores in figures(judged)["classes"].items():
        assert figures(out)["classes"][name] == pytest.approx(scores)


def test_predictions_are_sigmoids(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (data.parent / "list.csv").read_text().splitlines()
    both = next(row.partition(",")[0] for row in rows if ",red|left,val" in row)
    capsys.readouterr()
    assert main(["predict", str(run), str(data.parent / both), "--format", "jsonl", "--device", "cpu"]) == 0
    said = json.loads(capsys.readouterr().out)["predictions"]
    assert {one["class"] for one in said} == {"red", "left"}
    assert all(one["probability"] > 0.5 for one in said)
    assert said[0]["probability"] >= said[1]["probability"]


def test_the_table_marks_what_counts_as_predicted(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    photos = [str(data.parent / f"{i}.jpg") for i in range(126)]
    assert main(["predict", str(run), *photos, "--format", "jsonl", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    said = [json.loads(line)["predictions"] for line in out.splitlines()]
    marks = [sum(one["probability"] >= 0.5 for one in of) for of in said]
    assert set(marks) == {0, 1, 2}
    assert main(["predict", str(run), *photos, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert [line.count("*") for line in out.splitlines()] == marks
    assert err == "* counts as predicted: at least 50 %\n"


@pytest.mark.parametrize(
    ("several", "line"), [(True, "x  a 50.0 % *  b 50.0 %"), (False, "x  a 50.0 %  b 50.0 %")]
)
def test_what_is_rounded_to_the_threshold_has_no_mark(several: bool, line: str) -> None:
    file = io.StringIO()
    write_table([Prediction("x", ("a", "b"), (0.5, 0.4996), multi_label=several)], file, 2)
    assert file.getvalue() == f"{line}\n"


def test_an_export_says_that_its_activation_is_sigmoid(run: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "model.safetensors", tmp_path / "timm"
    for kind, out in (("safetensors", file), ("timm", folder)):
        assert main(["export", str(run), "--format", kind, "--out", str(out), "--samples", "7"]) == 0
    with safetensors.safe_open(file, "pt") as opened:
        about = opened.metadata()
    assert (about["activation"], about["top1"]) == ("sigmoid", "null")
    assert float(about["map"]) == json.loads((run / "summary.json").read_text())["best_map"]
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_the_page_has_what_several_labels_have(run: Path, judged: Path) -> None:
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "mean average precision over the classes" in page
    assert "average precision" in page[page.index("Class by class") :]
    for section in ('id="confusion"', 'id="mistakes"', 'id="trust"', "Guessing among"):
        assert section not in page


def test_features_have_lists_of_labels(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    assert main(["embed", str(run), "--out", str(out), "--device", "cpu"]) == 0
    table = pq.read_table(out).to_pydict()
    assert all(
        [("left", "red")[i] for i in labels] == names
        for labels, names in zip(table["labels"], table["classes"], strict=True)
    )
    assert {len(names) for names in table["classes"]} == {0, 1, 2}


def test_a_head_starts_as_the_probe(
    run: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = tmp_path / "weights.pt"
    weights = load_trained(run).net.model.state_dict()
    torch.save({name: value for name, value in weights.items() if "classifier" not in name}, pretrained)
    start = ["--pretrained", str(pretrained), "--head-init", "probe", "--epochs", "1", "--warmup", "0ep"]
    assert main([*flags, *start, "--lr", "0.0001", "--run-dir", str(tmp_path / "tuned")]) == 0
    before = json.loads((tmp_path / "tuned" / "summary.json").read_text())["before"]
    assert (list(before["map"]), before["head"]) == (["probe"], "probe")
    assert before["map"]["probe"] > 90
    assert "before, linear probe" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "LIVELY", "RUN"], "comparing"),
        (["embed", "RUN", "--knn", "train", "--device", "cpu"], "--knn is not available for multi-label"),
        (["eval", "RUN", "--real", "real.json"], "--real is not available for multi-label"),
        (["eval", "RUN", "--data", "SINGLE"], "trained on a dataset that is multi-label"),
        (["eval", "LIVELY", "--data", "SEVERAL"], "trained on a dataset that is of one class a sample"),
    ],
)
def test_what_needs_one_class_a_sample_refuses(
    run: Path,
    data: Path,
    lively_dir: Path,
    dataset_dir: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"RUN": run, "LIVELY": lively_dir, "SINGLE": dataset_dir, "SEVERAL": data}
    assert message in fails([str(places.get(word, word)) for word in arguments], capsys)


def test_a_sweep_goes_by_map(
    flags: list[str], dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", *flags, "--search", "weight-decay=log:1e-3,1e-2", "--study", str(tmp_path / "study")]
    assert "--metric is top1, but" in fails([*command, "--metric", "top1"], capsys)
    plan = Plan(flags=tuple(flags), space=parse_search(["weight-decay=log:1e-3,1e-2"], flag_names()))
    assert check_plan(plan, metric_given=False).plan.metric == "map"
    assert check_plan(replace(plan, metric="loss")).plan.metric == "loss"
    at = flags.index("--data") + 1
    plan = replace(plan, flags=(*flags[:at], str(dataset_dir), *flags[at + 1 :]))
    assert check_plan(plan, metric_given=False).plan.metric == "top1"
