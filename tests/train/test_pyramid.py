"""Feature pyramids of trained networks, and detectors on them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from torch import nn

from shard.errors import FeedlineError
from tests.train.runs import MEAN, STD, make_run
from train.pyramid import load_pyramid
from train.trained import load_trained

EXAMPLE = Path(__file__).parents[2] / "examples" / "backbone_detection.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "resnet", "test_resnet", ("a", "b", "c"), 64, ema=True)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("backbone_detection", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_levels_are_timms_features_with_the_runs_weights(run: Path) -> None:
    body = load_pyramid(run).eval()
    images = torch.randn(2, 3, 64, 96)
    maps = body(images)
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(body.channels.values(), (4, 8, 16, 32), strict=True)
    ]
    assert (body.mean, body.std) == (MEAN, STD)
    theirs = timm.create_model("test_resnet", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    weights = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model_ema"]
    theirs.load_state_dict(weights, strict=False)
    assert set(theirs.state_dict()) <= set(weights)
    for mine, other in zip(maps.values(), theirs(images), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_levels_in_any_order_are_the_same(run: Path) -> None:
    images = torch.randn(1, 3, 64, 64)
    maps, other = (load_pyramid(run, levels).eval()(images) for levels in ((3, 5), (5, 3, 3)))
    assert list(maps) == list(other) == ["c3", "c5"]
    assert all(torch.equal(maps[name], other[name]) for name in maps)


def test_the_deepest_level_is_what_the_classifier_sees(run: Path) -> None:
    net = load_trained(run).net
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    pixels = net.normalize(images)
    with torch.no_grad():
        torch.testing.assert_close(
            load_pyramid(run, (5,)).eval()(pixels)["c5"], net.model.forward_features(pixels)
        )  # type: ignore[operator]


def test_everything_but_norms_learns_and_nothing_is_left_over(run: Path) -> None:
    body = load_pyramid(run)
    before = {name: buffer.clone() for name, buffer in body.named_buffers()}
    sum(m.square().sum() for m in body(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(p.grad is not None for p in body.parameters())  # DDP would wait for one that is not used
    assert not any("fc." in name for name, _ in body.named_parameters())
    assert all(torch.equal(before[name], buffer) for name, buffer in body.named_buffers())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in body.modules())
    thawed = load_pyramid(run, frozen_norms=False)
    assert any(isinstance(m, torch.nn.BatchNorm2d) and m.training for m in thawed.modules())


def test_a_dilated_pyramid_keeps_weights_and_loses_strides(run: Path) -> None:
    maps = load_pyramid(run, (3, 4, 5), output_stride=8)(torch.randn(1, 3, 64, 64))
    assert {name: m.shape[2] for name, m in maps.items()} == {"c3": 8, "c4": 8, "c5": 8}


def test_models_without_the_levels_say_which_they_have(tmp_path: Path) -> None:
    vit = make_run(tmp_path / "vit", "test_vit", ("a", "b"), 160)
    with pytest.raises(FeedlineError, match=r"no level C2, a map of stride 4; it has C4$"):
        load_pyramid(vit)
    ours = make_run(tmp_path / "ours", "cifar_resnet9", ("a", "b"), 32)
    with pytest.raises(FeedlineError, match=r"CifarResNet gives no feature maps .* train another --arch"):
        load_pyramid(ours)
    with pytest.raises(FeedlineError, match=r"does not take .*output_stride"):
        load_pyramid(vit, (4,), output_stride=8)


def test_detector_and_segmenter_learn_through_the_backbone(
    run: Path, example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def kept(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def make_and_keep(*given: Any) -> nn.Module:
            made.append(make(*given))
            return made[-1]

        return make_and_keep

    for name in ("faster_rcnn", "deeplab"):
        monkeypatch.setattr(example, name, kept(getattr(example, name)))
    example.main([str(run), "--steps", "1", "--side", "64", "--classes", "3"])
    assert re.fullmatch(
        r"Faster R-CNN: losses \d+\.\d+\nDeepLabV3: losses \d+\.\d+\n", capsys.readouterr().out
    )
    detector, segmenter = made
    assert (detector.transform.image_mean, detector.transform.image_std) == (MEAN, STD)
    for body in (detector.backbone.body, segmenter.backbone.body):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in body.parameters())
    found = segmenter(torch.rand(2, 3, 64, 64))
    assert found["out"].shape == found["aux"].shape == (2, 3, 64, 64)


def test_boxes_become_masks(example: ModuleType) -> None:
    target = {"boxes": torch.tensor([[1.0, 2.0, 4.0, 6.0]]), "labels": torch.tensor([2])}
    (mask,) = example.masks([target], 8)
    assert mask.nonzero().tolist() == [[y, x] for y in range(2, 6) for x in range(1, 4)]
    assert mask.unique().tolist() == [0, 2]
