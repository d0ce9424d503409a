"""The comparison itself: agrees on agreeing pixels, and notices when they do not agree."""

import json

import pytest
import torch

from bench.__main__ import main
from bench.parity import parity
from loader.backend import Decoded
from loader.torch_backend import TorchBackend
from shard.dataset import Dataset


def test_parity_within_bounds_for_both_backends(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "--data", str(dataset.root), "--size", "56", "--device", "cpu", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["transform"], r["backend"], r["images"]) for r in rows] == [
        (transform, backend, 63) for transform in ("train", "eval") for backend in ("torch", "dali")
    ]
    assert all(row["mean"] <= 0.25 and row["p99.9"] <= 1 for row in rows)


def test_a_wrong_pixel_shows(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = TorchBackend.submit

    def brighter(*arguments: object) -> object:
        result = submit(*arguments)  # type: ignore[arg-type]

        def wait() -> Decoded:
            return Decoded(torch.clamp(result().images.int() + 3, max=255).to(torch.uint8))

        return wait

    monkeypatch.setattr(TorchBackend, "submit", brighter)
    rows = parity(dataset, "val", 32, torch.device("cpu"), ["torch"])
    assert all(2 < row["mean"] <= 3.2 for row in rows)
