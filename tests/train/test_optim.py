from __future__ import annotations

import pytest
import timm
import torch

from shard.errors import FeedlineError
from train.optim import OptimConfig, make_optimizer, set_lr


def test_norms_and_biases_have_no_weight_decay() -> None:
    model = timm.create_model("test_efficientnet", num_classes=3)
    optimizer = make_optimizer(model, OptimConfig(optimizer="adamw", weight_decay=0.05))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.0 if parameter.ndim <= 1 or name.endswith("bias") else 0.05
        assert decay[id(parameter)] == expected, name
    assert sorted(set(decay.values())) == [0.0, 0.05]


def test_set_lr_reaches_every_group() -> None:
    optimizer = make_optimizer(torch.nn.Linear(2, 2), OptimConfig())
    set_lr(optimizer, 0.125)
    assert [g["lr"] for g in optimizer.param_groups] == [0.125, 0.125]


def test_unknown_optimizer_names_the_nearest() -> None:
    with pytest.raises(FeedlineError, match="did you mean 'adamw'"):
        make_optimizer(torch.nn.Linear(2, 2), OptimConfig(optimizer="adamww"))
