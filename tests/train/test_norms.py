from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers import convert_sync_batchnorm

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.__main__ import main
from train.build import make_step
from train.cli import parse
from train.distributed import World
from train.memory import largest
from train.model import ModelConfig, Normalized, make_model
from train.norms import lone_norms


def network(arch: str, model_args: str = "") -> Normalized:
    return make_model(ModelConfig(arch=arch, model_args=model_args), 4, torch.device("cpu"))


@pytest.mark.parametrize(
    "arch", ["test_resnet", "test_efficientnet", "cifar_resnet9", "levit_128s", "test_vit"]
)
@pytest.mark.parametrize("side", [32, 64])
def test_norms_are_found_where_torch_would_refuse_one_image(arch: str, side: int) -> None:
    net = network(arch, model_args=f"img_size={side}" if arch in ("levit_128s", "test_vit") else "")
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = lone_norms(net, side)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    try:
        net(torch.zeros(1, side, side, 3, dtype=torch.uint8))
        refused = False
    except ValueError as error:
        refused = "more than 1 value per channel" in str(error)
    assert bool(found) == refused


def test_the_cases_of_the_test_above_are_of_both_kinds() -> None:
    assert lone_norms(network("test_resnet"), 32)
    assert not lone_norms(network("test_resnet"), 64)


def test_norms_over_all_ranks_and_norms_that_never_learn_are_none() -> None:
    net = network("test_resnet")
    assert lone_norms(net, 32, list(net.parameters())) == []
    net.model = convert_sync_batchnorm(net.model)
    assert lone_norms(net, 32) == []


WORDS = "--arch test_resnet --size 32 --eval-size 32 --eval-resize 32 --pad 0"


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_one_image_a_step_is_one_line_before_the_training(
    check: list[str], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags, *WORDS.split(), "--batch-size", "1", "--run-dir", str(tmp_path / "run"), *check]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "batch_size is 1, which is 1 image for each of 1 rank(s)" in err
    assert "give --batch-size 2 or more" in err


@pytest.mark.parametrize(
    ("more", "ranks", "least"),
    [
        ("--batch-size 2", 2, 4),
        ("--batch-size 4 --accumulate 2", 2, 8),
        ("--batch-size 1 --freeze all-but-head --freeze-for 1ep", 1, 2),
        ("--batch-size 1 --size 64 --start-size 32 --size-multiple 32", 1, 2),
        ("--batch-size 1 --freeze all-but-head", 1, None),
        ("--batch-size 1 --size 64", 1, None),
        ("--batch-size 2", 1, None),
    ],
)
def test_when_one_image_is_too_few(
    more: str, ranks: int, least: int | None, flags: list[str], dataset_dir: Path
) -> None:
    config = parse([*flags, *WORDS.split(), *more.split()]).settings
    dataset, world = Dataset.open(dataset_dir), World(size=ranks)
    if least is None:
        make_step(config, 6, world, dataset=dataset)
        return
    with pytest.raises(FeedlineError, match=f"give --batch-size {least} or more"):
        make_step(config, 6, world, dataset=dataset)


def test_the_largest_batch_is_looked_for_from_two_where_one_is_refused() -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= 4

    assert largest(fits, 64, least=2) == (4, 4)
    assert min(asked) == 2
    assert largest(lambda size: False, 64, least=2) == (0, 0)
