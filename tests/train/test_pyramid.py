"""Feature pyramids of trained networks, and detectors on them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch

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
        load_pyramid(make_run(tmp_path / "b", "cifar_resnet9", ("a",), 32), output_stride=8)


def test_detector_and_segmenter_learn_through_the_backbone(
    run: Path, example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    images, targets = example.random_batch(2, 64, 3)
    detector = example.faster_rcnn(run, 3, 64).train()
    assert (detector.transform.image_mean, detector.transform.image_std) == (MEAN, STD)
    sum(detector(list(images), targets).values()).backward()
    segmenter = example.deeplab(run, 3).train()
    found = segmenter(images)
    assert found["out"].shape == found["aux"].shape == (2, 3, 64, 64)
    (found["out"].square().mean() + found["aux"].square().mean()).backward()
    for body in (detector.backbone.body, segmenter.backbone.body):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in body.parameters())
    example.main([str(run), "--steps", "1", "--side", "64"])
    assert re.fullmatch(
        r"Faster R-CNN: losses \d+\.\d+\nDeepLabV3: losses \d+\.\d+\n", capsys.readouterr().out
    )
