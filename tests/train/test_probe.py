"""A linear probe, and heads that start as one."""

from collections.abc import Iterable
from dataclasses import replace
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
from train.evaluate import EvalConfig
from train.features import Extractor, Features
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


def probed() -> Config:
    """A head that starts as the probe, without judging it."""
    config = Config(evaluation=EvalConfig(before="none"))
    return replace(config, model=replace(config.model, head_init="probe"))


def measure(config: Config, world: World, net: Normalized) -> dict[str, Any]:
    """What is found of a network with a new head for two classes."""
    step, dataset = cast(TrainStep, SimpleNamespace(net=net)), Dataset(Path(), ("a", "b"), "", {})
    return before.measure(step, config, dataset, world, False, lambda: None, lambda: False)


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
    found = measure(probed(), Second(asked), net)
    assert found["head"] == "probe"  # as the first rank has it
    assert asked == ["broadcast", "gather"]
    assert splits == ["train"]  # nothing is judged
    assert before_line(found).startswith("before: features of 8 training samples in ")


def test_a_head_that_stays_at_random_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features = Features(torch.arange(8), torch.arange(8) % 2, torch.randn(8, 5))
    monkeypatch.setattr(before, "_features", lambda *given: features)
    monkeypatch.setattr(before, "start_head", lambda *given: False)
    assert measure(probed(), World(), model("test_resnet")) == {}
    assert (
        "head_init is 'probe', but the classifier of 'resnet50' is not one linear" in capsys.readouterr().err
    )


def test_where_training_and_evaluation_split_are_one_no_sample_votes_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = Features(torch.arange(2), torch.tensor([0, 1]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    monkeypatch.setattr(before, "_features", lambda *given: features)

    def knn(config: Config) -> float:
        return float(measure(config, World(), model("test_resnet"))["top1"]["knn"])

    config = Config(evaluation=EvalConfig(before="knn"))
    assert knn(config) == 100
    assert knn(replace(config, input=replace(config.input, eval_split=config.input.train_split))) == 0
