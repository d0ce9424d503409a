"""Weights of the classes: where they come from, and that they reach the gradients of any split of a batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.class_weights import class_weights
from train.distributed import World
from train.loss_window import LossWindow, StepRecord
from train.losses import LossConfig
from train.model import ModelConfig, make_model
from train.optim import OptimConfig, make_optimizer
from train.step import StepConfig, TrainStep

CPU = torch.device("cpu")


def weights(spec: str, dataset_dir: Path) -> torch.Tensor | None:
    return class_weights(spec, Dataset.open(dataset_dir), "train", CPU)


def test_balanced_is_scikit_learns(dataset_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights("none", dataset_dir) is None
    assert weights("balanced", dataset_dir).tolist() == [1.0] * 6  # type: ignore[union-attr]
    dataset = Dataset.open(dataset_dir)
    split = dataset.split("train")
    split.label[:30] = 0
    monkeypatch.setattr(Dataset, "split", lambda self, name: split)
    theirs = compute_class_weight("balanced", classes=np.arange(6), y=split.label)
    np.testing.assert_allclose(class_weights("balanced", dataset, "train", CPU), theirs, rtol=1e-6)
    split.label[:] = 0
    with pytest.raises(FeedlineError, match="but 'class1' has no samples in 'train'"):
        class_weights("balanced", dataset, "train", CPU)


def test_weights_from_a_file(dataset_dir: Path, tmp_path: Path) -> None:
    given = {f"class{i}": i + 0.5 for i in range(6)}
    (tmp_path / "w.json").write_text(json.dumps(given))
    (tmp_path / "w.csv").write_text("".join(f"{name},{value}\n" for name, value in given.items()))
    for name in ("w.json", "w.csv"):
        assert weights(str(tmp_path / name), dataset_dir).tolist() == list(given.values())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.txt", "", "give none, balanced, or a file that ends in .json or .csv"),
        ("balancd", "", "give none, balanced, or a file"),
        ("none.json", None, "cannot read .*none.json"),
        ("w.json", "[1]", "holds no JSON object"),
        ("w.json", '{"class0": 1}', "has no weight of class 'class1'"),
        ("w.json", '{"clas0": 1}', "names 'clas0', which is no class of the dataset; did you mean 'class0'"),
        ("w.csv", "class0,1,2\n", "cannot read .*a line class,weight"),
        ("w.csv", "class0,1\n\nclass0,2\n", "cannot read .*'class0' stands there twice"),
        ("w.json", '{"class0": 1, "class0": 1}', "cannot read .*'class0' stands there twice"),
        (
            "w.csv",
            "".join(f"class{i},0\n" for i in range(6)),
            "gives 'class0' the weight '0'; it must be a positive",
        ),
    ],
)
def test_wrong_files_are_one_line(
    name: str, content: str | None, message: str, dataset_dir: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(FeedlineError, match=message):
        weights(str(tmp_path / name), dataset_dir)


def test_parts_of_a_step_add_up_to_torchs_weighted_mean() -> None:
    """Two micro-batches with masked rows: gradients and loss are those of one batch of the others."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 24, 24, 3), dtype=torch.uint8, generator=generator)
    labels, valid = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]), torch.tensor([1, 1, 1, 0, 1, 0, 0, 1]).bool()
    weight = torch.tensor([1.0, 5.0, 0.2, 2.0])
    torch.manual_seed(0)
    net = make_model(ModelConfig(arch="test_efficientnet_gn"), 4, CPU)
    reference = torch.nn.CrossEntropyLoss(weight)(net(images[valid]), labels[valid])
    expected = torch.autograd.grad(reference, list(net.parameters()))
    optimizer = make_optimizer(net.model, OptimConfig(optimizer="momentum", momentum=0.0, weight_decay=0.0))
    config, loss = StepConfig(precision="fp32", accumulate=2), LossConfig()
    step = TrainStep(net, optimizer, config, World(), loss=loss, class_weights=weight)
    window, before = LossWindow(4, World()), [p.detach().clone() for p in net.parameters()]
    for _ in range(2):  # the sum of the weights starts afresh
        total = torch.zeros(())
        for part in (slice(4), slice(4, 8)):
            total += step.forward_backward(images[part], labels[part], valid[part], last=part.stop == 8)
        share = step.take_weight()
        assert share is not None
        window.add(total, StepRecord(1, 0.0, [], share=share))
        step.update(0.0)
    assert window.look() == pytest.approx([reference.item()] * 2, rel=1e-5)
    for part in (slice(4), slice(4, 8)):
        step.forward_backward(images[part], labels[part], valid[part], last=part.stop == 8)
    step.update(1.0)
    found = [b - p.detach() for b, p in zip(before, net.parameters(), strict=True)]
    torch.testing.assert_close(found, list(expected), rtol=1e-3, atol=1e-5)
