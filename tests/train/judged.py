"""A run folder whose network tells images apart, without a training."""

from __future__ import annotations

from pathlib import Path

import torch

from loader import Loader
from tests.train.runs import make_run
from train import checkpoint
from train.trained import load_trained

ARCH, SIDE = "test_efficientnet", 24
CLASSES = tuple(f"class{i}" for i in range(6))


def lively_run(root: Path, data: Path) -> Path:
    """Write a run of the tiles' dataset, with averaged weights, with logits of mean 0 and deviation 2."""
    make_run(root, ARCH, CLASSES, SIDE, data=data, ema=True)
    trained = load_trained(root)
    with Loader(data, "val", trained.config.input.eval_transform(), batch_size=42, threads=1) as loader:
        logits = trained.net(next(iter(loader)).images)
    content = checkpoint.load(trained.checkpoint)
    weights = content["model_ema"]
    scale = 2 / logits.std(dim=0)
    weights["classifier.weight"] *= scale[:, None]
    weights["classifier.bias"] = (weights["classifier.bias"] - logits.mean(dim=0)) * scale
    assert torch.isfinite(weights["classifier.bias"]).all()
    del content["format"]
    checkpoint.save(trained.checkpoint, content)
    return root
