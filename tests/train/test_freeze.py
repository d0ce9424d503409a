from __future__ import annotations

import pytest
import torch

from shard.errors import FeedlineError
from train.build import make_step
from train.config import Config
from train.distributed import World
from train.freeze import FreezeConfig
from train.model import ModelConfig
from train.optim import OptimConfig
from train.step import StepConfig, TrainStep

MODEL = ModelConfig(arch="test_efficientnet")


def make(freeze: str) -> TrainStep:
    config = Config(
        model=MODEL,
        freeze=FreezeConfig(freeze=freeze),
        optim=OptimConfig(weight_decay=0.1),
        step=StepConfig(precision="fp32"),
    )
    step = make_step(config, 4, World())
    step.train()
    return step


def train(step: TrainStep) -> set[str]:
    """Do two steps; returns the names of what changed, statistics included."""
    before = {k: v.clone() for k, v in step.net.model.state_dict().items()}
    images = torch.randint(
        0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for _ in range(2):
        step.forward_backward(images, torch.arange(8) % 4, torch.ones(8, dtype=torch.bool))
        step.update(0.1)
    return {k for k, v in step.net.model.state_dict().items() if not torch.equal(v, before[k])}


def test_all_but_the_head_stays_as_it_is_until_it_thaws() -> None:
    step = make("all-but-head")
    assert train(step) == {"classifier.weight", "classifier.bias"}
    step.set_frozen(False)
    everything = set(step.net.model.state_dict())
    assert train(step) == everything
    step.set_frozen(True)
    assert train(step) == {"classifier.weight", "classifier.bias"}


def test_parts_are_named_by_their_beginnings() -> None:
    step = make("conv_stem,bn1,blocks.0")
    changed = train(step)
    assert not [k for k in changed if k.startswith(("conv_stem", "bn1", "blocks.0."))]
    assert {
        k for k in step.net.model.state_dict() if not k.startswith(("conv_stem", "bn1.", "blocks.0."))
    } == changed


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("conv_stm", "freeze names 'conv_stm', which no parameter begins with; did you mean 'conv_stem'"),
        ("block", "did you mean 'blocks'"),
        ("conv_stem,bn1,blocks,conv_head,bn2,classifier", "leaves nothing to learn"),
    ],
)
def test_wrong_names_are_errors(freeze: str, message: str) -> None:
    with pytest.raises(FeedlineError, match=message):
        make(freeze)
