"""Training on a dataset in a store is the training on a disk."""

import json
from pathlib import Path

import torch

from bench.slow_server import SlowServer
from shard.dataset import Dataset
from train.__main__ import main
from train.inputs import InputConfig, first_images


def test_a_run_on_a_url_equals_one_on_the_disk(flags: list[str], dataset_dir: Path, tmp_path: Path) -> None:
    more = ["--epochs", "1", "--warmup-epochs", "0", "--shuffle", "window", "--lanes", "1", "--window", "1"]
    with SlowServer(dataset_dir) as server:
        words = [server.url if word == str(dataset_dir) else word for word in flags]
        assert server.url in words
        cache = ["--cache", str(tmp_path / "cache"), "--cache-gb", "1"]
        assert main([*words, *more, *cache, "--run-dir", str(tmp_path / "far")]) == 0
    assert main([*flags, *more, "--run-dir", str(tmp_path / "near")]) == 0
    far, near = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("far", "near"))
    assert far["loss"] == near["loss"]
    assert far["samples"] == near["samples"]
    assert list((tmp_path / "cache").glob("*.tar"))


def test_the_first_images_are_kept_in_the_cache_that_is_given(dataset_dir: Path, tmp_path: Path) -> None:
    config = InputConfig(size=24, batch_size=8, loader_threads=1, cache=tmp_path / "cache")
    with SlowServer(dataset_dir) as server:
        first_images(config, Dataset.open(server.url), torch.device("cpu"))
    assert list((tmp_path / "cache").glob("*.tar"))
