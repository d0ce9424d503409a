"""What comes after a multi-label training: every command that takes its run."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors

from train.__main__ import main
from train.cli import flag_names
from train.predict import Prediction
from train.predict.writers import write_table
from train.sweep.plan import Plan, check_plan
from train.sweep.space import parse_search


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Error of a command, which is one line."""
    capsys.readouterr()
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def test_predictions_are_sigmoids(
    several_run: Path, several_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (several_data.parent / "list.csv").read_text().splitlines()
    both = next(row.partition(",")[0] for row in rows if ",red|left,val" in row)
    capsys.readouterr()
    assert (
        main(
            [
                "predict",
                str(several_run),
                str(several_data.parent / both),
                "--format",
                "jsonl",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)["predictions"]
    assert {one["class"] for one in said} == {"red", "left"}
    assert all(one["probability"] > 0.5 for one in said)
    assert said[0]["probability"] >= said[1]["probability"]


def test_the_table_marks_what_counts_as_predicted(
    several_run: Path, several_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    photos = [str(several_data.parent / f"{i}.jpg") for i in range(126)]
    assert main(["predict", str(several_run), *photos, "--format", "jsonl", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    said = [json.loads(line)["predictions"] for line in out.splitlines()]
    marks = [sum(one["probability"] >= 0.5 for one in of) for of in said]
    assert set(marks) == {0, 1, 2}
    assert main(["predict", str(several_run), *photos, "--device", "cpu"]) == 0
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


def test_an_export_says_that_its_activation_is_sigmoid(several_run: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "model.safetensors", tmp_path / "timm"
    for kind, out in (("safetensors", file), ("timm", folder)):
        assert main(["export", str(several_run), "--format", kind, "--out", str(out), "--samples", "7"]) == 0
    with safetensors.safe_open(file, "pt") as opened:
        about = opened.metadata()
    assert (about["activation"], about["top1"]) == ("sigmoid", "null")
    assert float(about["map"]) == json.loads((several_run / "summary.json").read_text())["best_map"]
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_the_page_has_what_several_labels_have(several_run: Path, several_judged: Path) -> None:
    assert main(["report", str(several_run)]) == 0
    page = (several_run / "report.html").read_text()
    assert "mean average precision over the classes" in page
    assert "average precision" in page[page.index("Class by class") :]
    for section in ('id="confusion"', 'id="mistakes"', 'id="trust"', "Guessing among"):
        assert section not in page


def test_features_have_lists_of_labels(several_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    assert main(["embed", str(several_run), "--out", str(out), "--device", "cpu"]) == 0
    table = pq.read_table(out).to_pydict()
    assert all(
        [("left", "red")[i] for i in labels] == names
        for labels, names in zip(table["labels"], table["classes"], strict=True)
    )
    assert {len(names) for names in table["classes"]} == {0, 1, 2}


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
    several_run: Path,
    several_data: Path,
    lively_dir: Path,
    dataset_dir: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"RUN": several_run, "LIVELY": lively_dir, "SINGLE": dataset_dir, "SEVERAL": several_data}
    assert message in fails([str(places.get(word, word)) for word in arguments], capsys)


def test_a_sweep_goes_by_map(
    several_flags: list[str], dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "sweep",
        *several_flags,
        "--search",
        "weight-decay=log:1e-3,1e-2",
        "--study",
        str(tmp_path / "study"),
    ]
    assert "--metric is top1, but" in fails([*command, "--metric", "top1"], capsys)
    plan = Plan(flags=tuple(several_flags), space=parse_search(["weight-decay=log:1e-3,1e-2"], flag_names()))
    assert check_plan(plan, metric_given=False).plan.metric == "map"
    assert check_plan(replace(plan, metric="loss")).plan.metric == "loss"
    at = several_flags.index("--data") + 1
    plan = replace(plan, flags=(*several_flags[:at], str(dataset_dir), *several_flags[at + 1 :]))
    assert check_plan(plan, metric_given=False).plan.metric == "top1"
