"""The command as a user runs it, on a tiny dataset; what is measured, never how fast."""

import json
import mmap
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import page_cache
from bench.__main__ import main
from bench.gpu import gpu_figures
from bench.measure import Series, measure
from bench.page_cache import Eviction, advice, resident_share
from bench.peers.base import Job
from bench.stages import Copy, Load
from bench.throughput import Plan
from shard.dataset import Dataset, Split
from shard.errors import FeedlineError


class Stub:
    """In place of `Isolated`, whose processes tests/bench/test_peers.py starts."""

    output, note, lead_in = "", "", 1

    def __init__(self, name: str, job: Job) -> None:
        self.name, self.title, self.job = name, name, job

    def make(self) -> None:
        assert self.job.crop.size == 32

    def step(self) -> tuple[int, int]:
        time.sleep(0.001)
        return self.job.batch_size, 0

    def synchronize(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing to free."""


def command(dataset: Dataset, out: Path, *more: str) -> list[str]:
    quick = ["--repeats", "1", "--seconds", "0.05", "--batch-size", "8", "--size", "32"]
    return ["throughput", "--data", str(dataset.root), "--out", str(out), *quick, *more]


def test_throughput_end_to_end(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.throughput.Isolated", Stub)
    flags = ["--model", "cifar_resnet9", "--peers", "--device", "cpu"]
    assert main(command(dataset, tmp_path / "out", *flags)) == 0
    out = capsys.readouterr().out
    assert "limits" in out
    record = json.loads((tmp_path / "out" / "throughput.json").read_text())
    names = [stage["name"] for stage in record["stages"]]
    assert names == [
        "read", "decode", "loader_torch", "loader_dali", "dali", "torchvision", "synthetic", "real",
    ]  # fmt: skip
    assert record["default_loader"] == "loader_torch"
    assert set(record["ratio_intervals"]) == set(record["ratios"])
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
        assert stage["images_per_s_interval"]["low"] <= stage["images_per_s_interval"]["value"]
        times = stage["step_ms_percentiles"]
        assert 0 <= times["p50"] <= times["p95"] <= times["p99"]
        assert times["steps"] >= 1
        assert (stage["mb_per_s"][0] > 0) == (stage["name"] not in ("dali", "torchvision", "synthetic"))
    ceilings = {stage["name"]: stage["ceiling"] for stage in record["stages"]}
    assert ceilings.pop("real") in ("loader_torch", "synthetic")
    assert ceilings == {
        "read": None, "decode": "read", "loader_torch": "decode", "loader_dali": "decode", "dali": "decode",
        "torchvision": "decode", "synthetic": None,
    }  # fmt: skip
    by_name = {stage["name"]: stage for stage in record["stages"]}
    share = by_name["decode"]["share_of_ceiling"]["value"]
    assert share == pytest.approx(
        by_name["decode"]["images_per_s"][0] / by_name["read"]["images_per_s"][0], rel=0.05, abs=1e-3
    )
    assert record["settings"]["page_cache"] == "hot"
    assert record["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert record["settings"]["page_cache_advice"].endswith("--cold evicts it before every measurement")
    for name in ("throughput.png", "roofline.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000


def test_chosen_stages_only(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(dataset, tmp_path, "--stages", "loader", "--json", "--backend", "dali")) == 0
    record = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in record["stages"]] == ["loader_dali"]
    assert record["ratios"] == {}


def test_cold_evicts_before_every_measurement(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evicted: list[Split] = []
    monkeypatch.setattr(page_cache, "evict", evicted.append)
    monkeypatch.setattr(page_cache, "resident_share", lambda split: 0.0)
    assert main(command(dataset, tmp_path, "--stages", "read,decode", "--json", "--cold")) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["page_cache"] == "cold: evicted before every measurement"
    assert "only the first pass of a measurement is cold" in settings["page_cache_advice"]
    assert [split.name for split in evicted] == ["train", "train"]  # once per stage, of one repeat


def test_what_is_evicted_has_left_memory_and_what_stayed_is_told(dataset: Dataset, tmp_path: Path) -> None:
    copy = Dataset.open(shutil.copytree(dataset.root, tmp_path / "copy"))
    split = copy.split("train")
    sizes = [path.stat().st_size for path in map(split.shard_path, range(len(split.shards)))]
    for path in map(split.shard_path, range(len(split.shards))):
        path.read_bytes()
    assert resident_share(split) == 1
    cold = Eviction(split)
    cold()
    if "tmpfs" in subprocess.run(["stat", "-fc%T", tmp_path], capture_output=True, text=True).stdout:
        assert cold.state.startswith("not cold: ")  # there, nothing can be evicted
        return
    assert cold.state == "cold: evicted before every measurement"
    with split.shard_path(0).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped[:]
        cold()
    assert cold.stayed == pytest.approx(sizes[0] / sum(sizes), rel=0.01)
    assert cold.state.startswith(
        f"not cold: evicted before every measurement, but up to {cold.stayed:.0%} of"
    )


def test_data_greater_than_memory_needs_no_advice() -> None:
    assert advice(32 * 10**9, 16 * 10**9, cold=True) is None
    assert advice(32 * 10**9, 16 * 10**9, cold=False) is None


def test_a_grid_has_a_record_per_cell_and_one_table(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = ["--resolutions", "32,48", "--batch-sizes", "8", "--backends", "torch"]
    assert main(command(dataset, tmp_path, "--stages", "decode,loader", *axes)) == 0
    cells = ["32px-batch8-torch", "48px-batch8-torch"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["decode", "loader", "feed", "ratio"]
    assert [line.split()[0] for line in lines[2:]] == cells
    record = json.loads((tmp_path / "throughput-grid.json").read_text())
    assert list(record["cells"]) == cells
    assert record["cells"]["48px-batch8-torch"]["settings"]["config"]["input"]["size"] == 48
    assert record["cells"]["48px-batch8-torch"]["default_loader"] == "loader_torch"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(
        f"roofline-{cell}.png" for cell in cells
    )


def test_no_epoch_ends_within_a_measurement(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the loader would begin anew: of 63 images after every seventh batch of 8."""
    steps: list[int] = []

    def watched(stages: list[Load], *settings: Any) -> list[Series]:
        steps.extend(len(stage.loader) for stage in stages)
        return measure(stages, *settings)

    monkeypatch.setattr("bench.throughput.measure", watched)
    assert main(command(dataset, tmp_path, "--stages", "loader", "--backend", "torch", "--json")) == 0
    assert steps[0] >= 1000
    assert json.loads(capsys.readouterr().out)["settings"]["samples"] == 63


def test_the_preset_makes_images_where_none_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def watched(plan: Plan, device: torch.device, say: object) -> None:
        assert plan.config.data is not None
        assert len(Dataset.open(plan.config.data).split("train")) == 12
        seen.append(Path(plan.config.data))
        raise FeedlineError("enough seen")

    module = "bench.commands.throughput."
    for name, value in (("throughput", watched), ("_MADE", 12), ("_MADE_CLASSES", 3)):
        monkeypatch.setattr(module + name, value)
    monkeypatch.setattr(module + "find_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    preset = ["throughput", "--preset", "gpu", "--out", str(tmp_path / "out"), "--stages"]
    for wrong in (["raed"], ["read", "--batch-sizes", "x"]):
        assert main([*preset, *wrong]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1  # before any image is made
    assert main([*preset, "read"]) == 1
    said = capsys.readouterr().err
    assert "no --data: making 12 images" in said
    assert "enough seen" in said
    assert not seen[0].exists()
    monkeypatch.undo()
    assert main(["throughput", "--out", str(tmp_path / "out")]) == 1
    assert "data is missing; give --data DATASET" in capsys.readouterr().err


@pytest.mark.gpu
def test_the_copy_to_the_device() -> None:
    stage = Copy(4, 32, torch.device("cuda", 0))
    assert stage.step() == (4, 4 * 32 * 32 * 3)
    stage.synchronize()


@pytest.mark.gpu
def test_the_gpu_tells_what_a_joule_gives(dataset: Dataset) -> None:
    found = gpu_figures(Copy(4, 32, torch.device("cuda", 0)), torch.device("cuda", 0), 0.5)
    assert found["images_per_joule"] > 0
    assert found["memory_used_gib"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere"], "/nowhere is no dataset"),
        (["--stages", "loader,steps"], "--stages has 'steps'; choose out of read, decode"),
        (["--seconds", "0"], "--seconds is 0.0; it must be positive"),
        (["--split", "test"], "has no split 'test'; it has train, val"),
        (["--model", "resnet5000"], "arch is 'resnet5000'"),
        (["--model", "test_resnet", "--batch-size", "1"], "give --batch-size 2 or more"),
        (["--device", "cuda"], "no usable CUDA GPU"),
        (["--preset", "gpu"], "--preset gpu needs a CUDA GPU"),
        (["--stages", ""], "--stages is ''; name stages, each once"),
        (["--stages", "read,read"], "--stages is 'read,read'; name stages, each once"),
        (["--seconds", "nan"], "--seconds is nan; it must be positive"),
        (["--cold", "--peers"], "--cold and --peers are given together"),
        (["--device", "cpu", "--stages", "copy"], "--stages has 'copy', which is to a GPU"),
        (["--resolutions", "32,big"], "--resolutions is '32,big': 'big' is not a whole number"),
        (["--backends", "tf"], "--backends is 'tf': 'tf' is none of auto, dali, torch"),
    ],
)
def test_mistakes_end_in_one_line(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if {"cuda", "gpu"} & set(arguments) and torch.cuda.is_available():
        arguments, message = ["--data", "/nowhere"], "is no dataset"
    assert main(command(dataset, tmp_path / "out", *arguments)) == 1
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if line.startswith("error: ")] == error[-1:]
    assert message in error[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["throughput", "peers", "scaling", "accelerator", "doctor", "overhead", "remote"]
)
def test_where_no_result_can_be_written_nothing_is_measured(
    name: str, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    more = ["--over", "threads"] if name == "scaling" else []
    assert main([name, "--data", str(dataset.root), "--out", str(tmp_path / "file" / "out"), *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written" in line


def test_a_peer_that_is_interrupted_while_it_is_made_is_closed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Interrupted(Stub):
        def make(self) -> None:
            raise KeyboardInterrupt

        def close(self) -> None:
            closed.append(self.name)

    monkeypatch.setattr("bench.throughput.Isolated", Interrupted)
    assert main(command(dataset, tmp_path / "out", "--stages", "read", "--peers")) == 130
    assert closed == ["dali"]


def test_a_url_is_not_taken_for_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["throughput", "--data", "http://127.0.0.1/x"])
    assert "'http://127.0.0.1/x' is a URL" in capsys.readouterr().err
