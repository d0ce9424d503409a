from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loader import Loader
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.__main__ import main
from train.build import length_of
from train.cli import parse
from train.config import Config
from train.distributed import World
from train.engine import make_step
from train.inputs import InputConfig
from train.memory import Memory, fits_on_gpu, largest, measure_memory
from train.model import Normalized
from train.plan import Kind, _time_kinds, batch_size_text, dry_run, limit_memory, step_kinds
from train.recipes import recipe
from train.schedule import Length
from train.step import TrainStep
from train.synthetic import SyntheticLoader, synthetic_batch


@given(st.integers(0, 300), st.integers(1, 300))
def test_largest_that_fits(capacity: int, limit: int) -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        assert all(size < failed for failed in asked), "a larger one had already failed"
        if size > capacity:
            asked.append(size)
        return size <= capacity

    power, most = largest(fits, limit)
    bound = min(capacity, limit)
    assert power == (1 << bound.bit_length() >> 1 if bound else 0)
    assert most == max(power, bound // 8 * 8)


def test_out_of_memory_is_caught_and_leaves_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe("digits")
    step = make_step(config, 4, World())
    forward_backward = TrainStep.forward_backward

    def full(self: TrainStep, images: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        loss = forward_backward(self, images, *rest)
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(TrainStep, "forward_backward", full)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    before = {k: v.clone() for k, v in step.net.model.named_parameters()}
    assert largest(fits_on_gpu(step, 32, 4), 64) == (4, 4)
    assert all(p.grad is None for p in step.net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in step.net.model.named_parameters())


def test_memory_of_the_parts() -> None:
    step = make_step(recipe("digits"), 10, World())
    small, large = (measure_memory(step, synthetic_batch(n, 32, 10, torch.device("cpu"))) for n in (2, 8))
    parameters = sum(p.numel() for p in step.net.parameters())
    assert small.gradients == small.optimizer == 4 * parameters  # SGD has one momentum
    assert 4 * parameters < small.weights < 4.1 * parameters  # and the statistics of batch norm
    assert large.activations == pytest.approx(4 * small.activations, rel=0.02)
    assert large.total - large.activations == small.total - small.activations


def test_what_a_micro_batch_means_for_the_flags() -> None:
    text = batch_size_text(recipe("digits"), 16, 24)  # of 64
    assert "16 (power of two), 24 (multiple of 8)" in text
    assert "--batch-size 64 --accumulate 4" in text
    assert "--batch-size 64\n" in batch_size_text(recipe("digits"), 64, 96)


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


def test_dry_run_prints_the_plan_and_writes_nothing(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*flags, "--dry-run"]) == 0
    out = capsys.readouterr().out
    for text in (
        "test_efficientnet, 0.",
        "6 classes",
        "45 = 3 epochs × 15, of 120",
        "GFLOPs",
        "expected time",
    ):
        assert text in out
    assert files(tmp_path) == []


def test_dry_run_does_what_the_run_does(
    flags: list[str], dataset_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both image sizes, mixing, frozen and thawed steps; the average and both flips in evaluation."""
    more = "--start-size 16 --size-multiple 8 --ramp-from 1ep --ramp-to 1ep --mixup 0.2 --ema-decay 0.9 --flip-tta"
    words = [*flags, *more.split(), "--freeze", "conv_stem", "--freeze-for", "15st"]
    steps: set[tuple[int, bool, bool]] = set()
    evaluated: list[int] = []
    forward = Normalized.forward

    def spy(self: Normalized, images: torch.Tensor, mix: torch.Tensor | None = None) -> torch.Tensor:
        if self.training:
            frozen = not next(self.model.conv_stem.parameters()).requires_grad
            steps.add((images.shape[1], mix is not None, frozen))
        elif len(images) > 1:  # one: the model is tried
            evaluated.append(images.shape[1])
        return forward(self, images, mix)

    config = parse(words).settings
    monkeypatch.setattr(Normalized, "forward", spy)
    monkeypatch.setattr(
        "train.plan.measure_memory",
        lambda step, batch: Memory(weights=1, gradients=1, optimizer=1, activations=1),
    )
    found = dry_run(config, Dataset.open(dataset_dir), World())
    assert steps == {(16, True, True), (16, True, False), (24, True, False)}
    assert len(evaluated) == 2 * 2 * 2  # batches × weights and average × flips
    assert found["sizes"] == [16, 24]
    assert found["expected_s"] == pytest.approx(45 * found["step_s"] + 3 * found["eval_s"])


def test_dry_run_with_synthetic_data_reads_and_evaluates_nothing(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(self: Loader) -> None:
        raise AssertionError("the dataset was read")

    monkeypatch.setattr(Loader, "__iter__", unread)
    assert main([*flags, "--synthetic", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "images/s with synthetic data" in out
    assert "none with synthetic data" in out


def test_many_sizes_are_interpolated(
    flags: list[str], dataset_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = "--start-size 10 --size-multiple 1 --ramp-by step --ramp-to 45st --ramp-from 0st"
    words = [*flags, *more.split()]
    config, data = parse(words).settings, Dataset.open(dataset_dir)
    length, asked = length_of(config, data), list[int]()

    def timed(config: Config, data: Dataset, step: Any, kind: Kind, length: Length) -> tuple[float, None]:
        asked.append(kind.side)
        return 1e-3 * kind.side**2, None

    monkeypatch.setattr("train.plan._time_steps", timed)
    kinds = step_kinds(config, length)
    assert sum(kinds.values()) == 45
    took_s, _ = _time_kinds(config, data, None, kinds, length)  # type: ignore[arg-type]
    assert len(asked) == 4
    assert (min(asked), max(asked)) == (10, max(kind.side for kind in kinds))
    assert all(took_s[kind] == pytest.approx(1e-3 * kind.side**2) for kind in kinds)


@pytest.mark.parametrize("freeze_for", ["1ep", "100%"])
def test_find_batch_size_measures_the_model_as_it_learns_most(
    freeze_for: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    learning: set[bool] = set()

    def spy(step: TrainStep, *rest: Any) -> Any:
        learning.add(all(p.requires_grad for p in step.net.parameters()))
        return lambda size: size <= 8

    monkeypatch.setattr("train.plan.fits_in_budget", spy)
    more = ["--freeze", "all-but-head", "--freeze-for", freeze_for, "--find-batch-size", "--memory-gib", "1"]
    assert main([*flags, *more]) == 0
    assert learning == {freeze_for == "1ep"}


def test_check_finds_mistakes_without_training_or_a_gpu(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*flags, "--precision", "fp16", "--check"]) == 0  # where the training runs there may be a GPU
    assert "no mistake found: test_efficientnet, 6 classes, 45 steps" in capsys.readouterr().out
    for words, status in (("--no-such-flag", 2), ("--eval-split tset", 1), ("--freeze nothing", 1)):
        assert main([*flags, *words.split(), "--check"]) == status
        assert capsys.readouterr().err.count("\n") == 1
    assert files(tmp_path) == []


@pytest.mark.parametrize(("memory_gib", "share"), [(None, 0.9), (20.0, 0.5), (80.0, 1.0)])
def test_a_tenth_of_a_gpu_is_left_to_the_loader(
    memory_gib: float | None, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=40 * 2**30)
    )
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda limit, device: limits.append(limit)
    )
    limit_memory(torch.device("cuda", 0), memory_gib)
    assert limits == [pytest.approx(share)]


def test_find_batch_size_on_a_cpu_wants_a_budget(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*flags, "--find-batch-size"]) == 1
    assert "on a CPU memory is not the limit" in capsys.readouterr().err
    assert main([*flags, "--find-batch-size", "--memory-gib", "0.005"]) == 0
    assert "largest micro-batch per rank at 24 px:" in capsys.readouterr().out
    assert main([*flags, "--find-batch-size", "--memory-gib", "0.0001"]) == 1
    assert "not even a batch of 2 at 24 px" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_synthetic_data_gives_a_speed_and_nothing_that_could_pass_for_a_result(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(self: Loader) -> None:
        raise AssertionError("the dataset was read")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Loader, "__iter__", unread)
        assert (
            main(
                [*flags, "--synthetic", "--accumulate", "2", "--checkpoint-every", "4", "--run-dir", str(run)]
            )
            == 0
        )
    out = capsys.readouterr().out
    assert "synthetic data" in out
    assert "top-1" not in out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["synthetic"] is True
    assert summary["steps"] == 45
    assert summary["images_per_s"] > 0
    assert "top1" not in summary
    assert list((run / "checkpoints").iterdir()) == []
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert {m["kind"] for m in lines} == {"train"}


def test_a_real_run_does_not_go_on_with_synthetic_data(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--epochs", "1", "--run-dir", str(tmp_path)]) == 0
    assert main([*flags, "--epochs", "1", "--synthetic", "--run-dir", str(tmp_path)]) == 1
    assert "synthetic: False → True" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "last.pt").exists()


def test_synthetic_loader_has_the_real_ones_steps(dataset_dir: Path) -> None:
    data, config = Dataset.open(dataset_dir), InputConfig(batch_size=16, size=24)
    loader = SyntheticLoader(config, data, 0, 2, World(rank=1, size=2))
    batches = list(loader)
    assert (len(batches), loader.epoch, loader.samples_consumed) == (14, 1, 0)  # 7 steps of 2 micro-batches
    assert batches[0].images.shape == (4, 24, 24, 3)
    assert batches[0].ids.tolist() == [-1] * 4
    with pytest.raises(FeedlineError, match="no checkpoints"):
        loader.state_dict()
    with pytest.raises(FeedlineError, match="fewer than batch_size 121"):
        SyntheticLoader(InputConfig(batch_size=121), data, 0, 1, World())
