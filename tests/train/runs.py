"""Run folders without a training: what `python -m train` leaves behind, with weights that nobody has trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from train import checkpoint
from train.config import save, to_dict
from train.model import ModelConfig, make_model
from train.recipes import recipe
from train.run_folder import RunFolder

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_run(
    root: Path,
    arch: str,
    classes: tuple[str, ...],
    side: int,
    *,
    data: Path | None = None,
    ema: bool = False,
    **model: Any,
) -> Path:
    """Write a run folder with best.pt, and return it.

    Args:
        root: the folder.
        arch: its model.
        classes: its classes.
        side: of its evaluation images, which are resized to 8/7 of it before they are cropped.
        data: its dataset.
        ema: whether it holds averaged weights, too; these are others.
        model: further values of `ModelConfig`.
    """
    config = recipe("digits")
    config = replace(
        config,
        data=None if data is None else str(data),
        input=replace(config.input, eval_size=side, eval_resize=side * 8 // 7, loader_threads=1),
        model=ModelConfig(arch=arch, mean=MEAN, std=STD, **model),
    )
    folder = RunFolder(root)
    folder.checkpoints.mkdir(parents=True)
    save(config, folder.config)
    content = {
        "config": to_dict(config),
        "classes": list(classes),
        "epoch": 3,
        "step": 30,
        "last_eval": {"top1": 50.0, "ema_top1": 75.0} if ema else {"top1": 50.0},
        "model": _weights(config.model, len(classes), 0),
        **({"model_ema": _weights(config.model, len(classes), 1)} if ema else {}),
    }
    checkpoint.save(folder.best, content)
    return root


def _weights(config: ModelConfig, classes: int, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = make_model(config, classes, torch.device("cpu")).model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases start at 0 and 1, where a mistake would not show
                parameter.add_(0.3 * torch.randn_like(parameter))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.3 * torch.rand_like(buffer))
    return model.state_dict()
