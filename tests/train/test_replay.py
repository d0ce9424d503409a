from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from loader import Batch
from train.__main__ import main
from train.replay import main as replay_main
from train.replay import replay
from train.step import TrainStep


def test_the_batch_that_broke_a_run_is_written_as_it_was(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[torch.Tensor] = []
    forward_backward = TrainStep.forward_backward

    def spy(self: TrainStep, images: torch.Tensor, *rest: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(images.clone())
        return forward_backward(self, images, *rest, **options)

    monkeypatch.setattr(TrainStep, "forward_backward", spy)
    assert main([*flags, "--lr", "1e30", "--accumulate", "2", "--run-dir", str(tmp_path)]) == 1
    assert "python -m train.replay RUN" in capsys.readouterr().err
    found = json.loads((tmp_path / "nonfinite.json").read_text())
    trained = torch.cat(seen[2 * found["step"] - 2 : 2 * found["step"]])

    batch, blamed = replay(tmp_path)
    assert sorted(blamed) == sorted(batch.ids.tolist())
    assert torch.equal(batch.images, trained)

    assert replay_main([str(tmp_path)]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert len(paths) == 8
    by_id = {int(path.name.split("-")[0]): np.asarray(Image.open(path)) for path in paths}
    for sample, pixels in zip(batch.ids.tolist(), batch.images, strict=True):
        assert np.array_equal(by_id[sample], pixels.numpy())
    assert isinstance(batch, Batch)


def test_a_run_without_a_break_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay_main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: there is no ")
