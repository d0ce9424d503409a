"""A linear probe, and heads that start as one."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from shard.dataset import Dataset
from train import before
from train.before import before_line
from train.config import Config
from train.distributed import World
from train.features import Extractor, Features
from train.freeze import set_train_mode
from train.model import ModelConfig, Normalized, make_model
from train.probe import Probe, fit, start_head
from train.step import TrainStep

SIDE = 32


def model(arch: str, arguments: str = "") -> Normalized:
    torch.manual_seed(0)
    return make_model(ModelConfig(arch=arch, model_args=arguments), 4, torch.device("cpu")).eval()


def images(count: int) -> torch.Tensor:
    return torch.randint(
        256, (count, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("arch", ["test_resnet", "cifar_resnet9", "test_vit", "test_efficientnet"])
def test_a_head_that_starts_as_the_probe_gives_its_logits(arch: str) -> None:
    net = model(arch, f"img_size={SIDE}" if arch == "test_vit" else "")
    seen = images(12)
    values = Extractor(net)(seen)
    labels = torch.arange(12) % 4
    probe = fit(Features(torch.arange(12), labels, values), 4)
    assert probe.score(Features(torch.arange(12), labels, values)) == 100.0
    assert start_head(net, probe, SIDE)
    with torch.no_grad():
        assert (net(seen) - probe(values)).abs().max() <= 1e-2 * probe(values).abs().max()


def test_a_head_that_cannot_be_the_probe_stays() -> None:
    without_bias = model("airbench94")
    before = {name: value.clone() for name, value in without_bias.state_dict().items()}
    width = without_bias.model.num_features
    assert not start_head(without_bias, Probe(torch.ones(4, int(width)), torch.ones(4)), SIDE)
    after = without_bias.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_head_behind_something_that_is_not_linear_stays() -> None:
    net = model("test_resnet")
    net.model.get_classifier().register_forward_hook(lambda module, inputs, output: output.square())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    width = net.model.get_classifier().in_features
    assert not start_head(net, Probe(torch.randn(4, width, generator=generator), torch.ones(4)), SIDE)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_norms_can_keep_their_statistics_while_their_weights_learn() -> None:
    net = model("test_resnet")
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    set_train_mode(net, keep_statistics=True)
    net(images(4)).square().sum().backward()
    assert all(torch.equal(buffers[name], value) for name, value in net.named_buffers())
    norms = [p for name, p in net.named_parameters() if "bn" in name]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in norms)
    set_train_mode(net)
    net(images(4))
    assert any(not torch.equal(buffers[name], value) for name, value in net.named_buffers())


class Second(World):
    """The second rank of two, with what it is asked for."""

    def __init__(self, asked: list[str]) -> None:
        super().__init__(rank=1, size=2)
        object.__setattr__(self, "asked", asked)

    def broadcast_(self, tensors: Iterable[torch.Tensor]) -> None:
        self.asked.append("broadcast")

    def gather(self, value: Any) -> list[Any]:
        self.asked.append("gather")
        return [True, value]


def test_ranks_whose_probes_come_out_differently_go_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model("test_resnet")
    asked: list[str] = []
    splits: list[str] = []
    features = Features(torch.arange(8), torch.arange(8) % 2, torch.randn(8, 5))

    def of(step: Any, config: Any, dataset: Any, split: str, *rest: Any) -> Features:
        splits.append(split)
        return features

    monkeypatch.setattr(before, "_features", of)
    monkeypatch.setattr(before, "start_head", lambda *given: False)  # here it has not worked
    found = before.measure(
        cast(TrainStep, SimpleNamespace(net=net)), Config(), Dataset(Path(), ("a", "b"), "", {}), Second(asked),
        [], True, lambda: None, lambda: False,
    )  # fmt: skip
    assert found["head"] == "probe"  # as the first rank has it
    assert asked == ["broadcast", "gather"]
    assert splits == ["train"]  # nothing is judged
    assert before_line(found).startswith("before: features of 8 training samples in ")
