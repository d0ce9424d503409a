from __future__ import annotations

import pytest
import torch

from shard.errors import FeedlineError
from train.distributed import World
from train.ema import Ema, EmaConfig, make_ema
from train.model import ModelConfig, make_model
from train.optim import OptimConfig, make_optimizer
from train.step import StepConfig, TrainStep


def test_average_follows_its_formula_and_takes_in_running_statistics() -> None:
    torch.manual_seed(0)
    net = make_model(ModelConfig(arch="test_efficientnet"), 4, torch.device("cpu")).train()
    config = EmaConfig(ema_decay=0.75)
    optimizer = make_optimizer(net.model, OptimConfig(optimizer="momentum"))
    step = TrainStep(net, optimizer, StepConfig(precision="fp32"), World(), ema=make_ema(net, config))
    assert step.ema is not None
    expected: dict[str, torch.Tensor] = {}
    images = torch.randint(
        0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels, valid = torch.arange(8) % 4, torch.ones(8, dtype=torch.bool)
    for number in range(1, 5):
        step.forward_backward(images, labels, valid)
        step.update(0.1, number)
        for key, value in net.model.state_dict().items():
            if number == 1 or not value.is_floating_point():
                expected[key] = value.clone()
            else:
                expected[key] = 0.75 * expected[key] + 0.25 * value
    for key, value in step.ema.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)
    raw = net.model.state_dict()
    assert not torch.allclose(step.ema.state_dict()["bn1.running_mean"], raw["bn1.running_mean"])
    assert not torch.allclose(step.ema.state_dict()["conv_stem.weight"], raw["conv_stem.weight"])
    assert torch.equal(step.ema.state_dict()["bn1.num_batches_tracked"], raw["bn1.num_batches_tracked"])
    net.eval()
    assert not torch.allclose(step.predict(images), step.predict_averaged(images))
    assert not any(p.requires_grad for p in step.ema.net.parameters())


def test_warmup_lets_the_decay_rise_to_its_bound() -> None:
    net = make_model(ModelConfig(arch="test_efficientnet"), 4, torch.device("cpu"))
    decays = [Ema(net, EmaConfig(ema_decay=0.99, ema_warmup=True)).decay(s) for s in (1, 2, 11, 101, 10**6)]
    assert decays == pytest.approx([0, 1 - 2 ** (-2 / 3), 1 - 11 ** (-2 / 3), 1 - 101 ** (-2 / 3), 0.99])


def test_no_average_unless_asked_and_no_impossible_one() -> None:
    net = make_model(ModelConfig(arch="test_efficientnet"), 4, torch.device("cpu"))
    assert make_ema(net, EmaConfig()) is None
    with pytest.raises(FeedlineError, match=r"ema_decay is 1\.0"):
        EmaConfig(ema_decay=1.0)
