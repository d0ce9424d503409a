"""The command as a user runs it, on a tiny dataset; what is measured, never how fast."""

import json
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from shard.dataset import Dataset

QUICK = ["--repeats", "1", "--seconds", "0.05", "--batch-size", "8", "--size", "32"]


def test_throughput_end_to_end(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "throughput",
        "--data",
        str(dataset.root),
        "--model",
        "cifar_resnet9",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, *QUICK, "--peers"]) == 0
    out = capsys.readouterr().out
    assert "limits" in out
    record = json.loads((tmp_path / "out" / "throughput.json").read_text())
    names = [stage["name"] for stage in record["stages"]]
    assert names == [
        "read", "decode", "loader_torch", "loader_dali", "dali", "torchvision", "synthetic", "real",
    ]  # fmt: skip
    assert record["default_loader"] == "loader_torch"
    assert set(record["ratios"]) == {
        "loader / decode ceiling",
        "loader / plain DALI",
        "loader / torchvision",
        "loader / training on synthetic",
        "feed ratio (real / synthetic)",
    }
    for stage in record["stages"]:
        assert stage["images_per_s"][0] > 0
        assert stage["cpu_s_per_1000"][0] >= 0
    assert record["settings"]["page_cache"] == "hot"
    assert record["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert (tmp_path / "out" / "throughput.png").stat().st_size > 10_000


def test_chosen_stages_only(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "throughput",
        "--data",
        str(dataset.root),
        "--out",
        str(tmp_path),
        "--stages",
        "loader",
        "--json",
    ]
    assert main([*arguments, *QUICK, "--backend", "dali"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in record["stages"]] == ["loader_dali"]
    assert record["ratios"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere"], "/nowhere is no dataset"),
        (["--stages", "loader,steps"], "--stages has 'steps'; choose out of read, decode"),
        (["--seconds", "0"], "--seconds is 0.0; it must be positive"),
        (["--split", "test"], "has no split 'test'; it has train, val"),
        (["--model", "resnet5000"], "arch is 'resnet5000'"),
        (["--device", "cuda"], "no usable CUDA GPU"),
    ],
)
def test_mistakes_end_in_one_line(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        arguments, message = ["--data", "/nowhere"], "is no dataset"
    given = ["throughput", "--data", str(dataset.root), "--out", str(tmp_path / "out"), *QUICK, *arguments]
    assert main(given) == 1
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if line.startswith("error: ")] == error[-1:]
    assert message in error[-1]
    assert not (tmp_path / "out").exists()
