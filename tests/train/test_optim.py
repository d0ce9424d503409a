from __future__ import annotations

import math
from itertools import pairwise

import pytest
import timm
import torch

from shard.errors import FeedlineError
from train.optim import OptimConfig, ScheduleConfig, lr_at, make_optimizer, set_lr


def test_lr_warms_up_linearly_to_the_peak() -> None:
    schedule = ScheduleConfig(epochs=4, warmup_epochs=1, decay="cosine")
    assert [lr_at(s, 5, 1.0, schedule) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_lr_follows_the_cosine() -> None:
    schedule = ScheduleConfig(epochs=4, warmup_epochs=0, decay="cosine", final_lr=0.1)
    values = [lr_at(s, 5, 1.0, schedule) for s in range(20)]
    assert values == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * s / 20)) / 2 for s in range(20)])


def test_warmup_and_linear_decay_make_a_triangle() -> None:
    schedule = ScheduleConfig(epochs=3, warmup_epochs=0.5, decay="linear")
    values = [lr_at(s, 4, 2.0, schedule) for s in range(12)]
    assert values[:3] == pytest.approx([1.0, 2.0, 2.0])
    drops = [a - b for a, b in pairwise(values[2:])]
    assert drops == pytest.approx([0.2] * 9)
    assert values[-1] == pytest.approx(0.2)  # one drop above final_lr: no step is wasted on lr 0


def test_lr_depends_on_nothing_but_the_step() -> None:
    schedule = ScheduleConfig(epochs=3, warmup_epochs=1)
    forwards = [lr_at(s, 7, 0.3, schedule) for s in range(21)]
    backwards = [lr_at(s, 7, 0.3, schedule) for s in reversed(range(21))]
    assert forwards == backwards[::-1]


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


def test_schedule_without_room_is_an_error() -> None:
    with pytest.raises(FeedlineError, match="warmup_epochs is 5"):
        ScheduleConfig(epochs=4, warmup_epochs=5)
