"""Pretrained weights: the head that comes with them, the images they are for, and machines without network."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo
from timm.models import _builder
from torch import nn

from shard.errors import FeedlineError
from tests.train.runs import MEAN, STD, make_run
from train import hub
from train.__main__ import main
from train.head import head_parameters, put_mlp
from train.model import ModelConfig, make_model, statistics
from train.optim import OptimConfig, make_optimizer
from train.pretrained import FROM_TIMM, has_timms_labels, load_pretrained, own_input

ARCH, CPU = "test_efficientnet", torch.device("cpu")
NAMES = ("ash", "beech", "fir", "oak")
# Linear layers under several names, a convolution, and two classifiers side by side.
HEADS = {
    "test_efficientnet": "classifier",
    "test_vit": "head",
    "test_convnext": "head.fc",
    "test_resnet": "fc",
    "cifar_resnet9": "head",
}


@pytest.mark.parametrize("arch", HEADS)
def test_an_mlp_takes_the_place_of_the_classifier(arch: str) -> None:
    config = ModelConfig(arch=arch, head="mlp", head_hidden=11, head_drop=0.3)
    net = make_model(config, 4, CPU)
    linear = make_model(ModelConfig(arch=arch), 4, CPU)
    name = HEADS[arch]
    inputs = linear.model.get_submodule(name).in_features
    shapes = {k: tuple(v.shape) for k, v in net.model.state_dict().items() if k.startswith(name + ".")}
    shapes = {k: v for k, v in shapes.items() if k[len(name) + 1].isdigit()}
    assert shapes == {
        f"{name}.0.weight": (11, inputs), f"{name}.0.bias": (11,),
        f"{name}.3.weight": (4, 11), f"{name}.3.bias": (4,),
    }  # fmt: skip
    assert head_parameters(net.model) == set(shapes)
    assert net.model.get_submodule(name)[2].p == 0.3
    side = timm.get_pretrained_cfg(arch).input_size[-1]
    images = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    assert net.eval()(images).shape == (2, 4)
    if arch != "cifar_resnet9":  # timm has its layers in order: the whole head learns at the full rate
        groups = make_optimizer(net.model, OptimConfig(layer_decay=0.5)).param_groups
        last = {id(p) for g in groups if g["lr_scale"] == 1 for p in g["params"]}
        assert {id(p) for n, p in net.model.named_parameters() if n in shapes} <= last


class Odd(nn.Module):
    """A model with whatever classifiers."""

    def __init__(self, *classifiers: nn.Module) -> None:
        super().__init__()
        self.heads = nn.ModuleList(classifiers)

    def get_classifier(self) -> tuple[nn.Module, ...] | nn.Module:
        return tuple(self.heads) if len(self.heads) > 1 else self.heads[0]


def test_two_classifiers_and_convolutions_get_one_each() -> None:
    model = Odd(nn.Linear(5, 3), nn.Conv2d(6, 3, 1))
    put_mlp(model, "odd", 4, 0.0)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "heads.0.0.weight": (4, 5), "heads.0.3.weight": (3, 4),
        "heads.1.0.weight": (4, 6, 1, 1), "heads.1.3.weight": (3, 4, 1, 1),
    }  # fmt: skip
    assert head_parameters(model) == {name for name, _ in model.named_parameters()}


def test_a_classifier_that_is_no_layer_is_refused() -> None:
    with pytest.raises(
        FeedlineError, match="head is 'mlp', but the classifier of 'odd' is a Bilinear and no"
    ):
        put_mlp(Odd(nn.Bilinear(2, 2, 2)), "odd", 4, 0.0)
    with pytest.raises(FeedlineError, match="timm knows no classifier of 'odd'"):
        put_mlp(nn.Linear(2, 2), "odd", 4, 0.0)


def test_a_head_for_other_classes_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", ARCH, NAMES, 24)
    theirs = torch.load(run / "checkpoints" / "best.pt")["model"]
    config = ModelConfig(arch=ARCH, pretrained=run)
    same = make_model(config, 4, CPU, classes=NAMES)
    assert same.own_head
    assert torch.equal(same.model.get_parameter("classifier.weight"), theirs["classifier.weight"])
    assert capsys.readouterr().err == ""
    for names in (NAMES[::-1], (*NAMES[:3], "elm")):
        other = make_model(config, 4, CPU, classes=names)
        assert not other.own_head
        assert "its head is for other classes and is left out" in capsys.readouterr().err
        assert not torch.equal(other.model.get_parameter("classifier.weight"), theirs["classifier.weight"])
        assert torch.equal(other.model.get_parameter("conv_stem.weight"), theirs["conv_stem.weight"])


def test_an_mlp_comes_with_its_run_and_stays_at_home_otherwise(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ARCH, NAMES, 24, head="mlp", head_hidden=7)
    config = ModelConfig(arch=ARCH, pretrained=run, head="mlp", head_hidden=7)
    assert make_model(config, 4, CPU, classes=NAMES).own_head
    for head, hidden in (("linear", 7), ("mlp", 8)):
        other = ModelConfig(arch=ARCH, pretrained=run, head=head, head_hidden=hidden)  # type: ignore[arg-type]
        assert not make_model(other, 4, CPU, classes=NAMES).own_head


def test_timms_labels_are_wnids_in_their_order() -> None:
    wnids = ImageNetInfo("imagenet-1k").label_names()
    assert has_timms_labels("resnet18.a1_in1k", wnids)
    assert not has_timms_labels("resnet18.a1_in1k", wnids[::-1])
    assert not has_timms_labels("resnet18.a1_in1k", wnids[:10])


def test_what_weights_were_trained_on(tmp_path: Path) -> None:
    half = (0.5, 0.5, 0.5)
    found = own_input("vit_small_patch16_224.augreg_in21k_ft_in1k", FROM_TIMM)
    assert (found.mean, found.std, found.interpolation) == (half, half, "bicubic")
    assert (found.size, found.eval_size, found.eval_resize) == (224, 224, 248)  # crop_pct 0.9
    assert found.source == "timm of vit_small_patch16_224.augreg_in21k_ft_in1k"
    assert own_input("resnet50.tv_in1k", FROM_TIMM).interpolation == "bilinear"
    assert own_input("resnet50", FROM_TIMM).source == "timm of resnet50.a1_in1k"
    run = make_run(tmp_path / "run", ARCH, NAMES, 24)
    for path in (run, run / "checkpoints" / "best.pt"):
        found = own_input(ARCH, path)
        assert (found.mean, found.std, found.eval_size, found.eval_resize) == (MEAN, STD, 24, 27)
        assert statistics(ModelConfig(arch=ARCH, pretrained=path)) == (MEAN, STD)


def test_a_folder_of_the_hub_says_what_it_is_for(tmp_path: Path) -> None:
    save_file(timm.create_model(ARCH, num_classes=9).state_dict(), tmp_path / "model.safetensors")
    about = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.4, 0.4], "input_size": [3, 96, 96], "crop_pct": 0.5,
             "interpolation": "lanczos", "crop_mode": "squash"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"architecture": ARCH, "pretrained_cfg": about}))
    found = own_input(ARCH, tmp_path)
    assert (found.mean, found.size, found.eval_resize, found.interpolation) == (
        (0.1, 0.2, 0.3),
        96,
        192,
        "bicubic",
    )
    assert "lanczos, which is not to be had" in found.source
    assert "crop squash, which is not to be had" in found.source
    make_model(ModelConfig(arch=ARCH, pretrained=tmp_path), 4, CPU)
    for text in ("{", "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(FeedlineError, match=r"config\.json cannot be read: .*; fetch it again"):
            own_input(ARCH, tmp_path)
    with pytest.raises(FeedlineError, match=r"a folder with neither checkpoints/best\.pt"):
        own_input(ARCH, tmp_path.parent)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `export --format safetensors`, alone in its folder."""
    run = make_run(tmp_path_factory.mktemp("run") / "run", ARCH, NAMES, 24)
    path = tmp_path_factory.mktemp("export") / "model.safetensors"
    words = f"export {run} --format safetensors --out {path} --synthetic --samples 7"
    assert main(words.split()) == 0
    return path


def rewritten(path: Path, to: Path, change: dict[str, str | None]) -> Path:
    """The file with other entries in its header; those that become None are left out."""
    with safe_open(path, "pt") as file:
        about = {**file.metadata(), **change}
    save_file(load_file(path), to, {key: text for key, text in about.items() if text is not None})
    return to


def test_an_exported_file_says_what_it_is_for(exported: Path) -> None:
    for path in (exported, exported.parent):
        found = own_input(ARCH, path)
        assert (found.source, found.mean, found.std) == (str(path), MEAN, STD)
        assert (found.size, found.eval_size, found.eval_resize) == (24, 24, 27)
        assert found.interpolation == "bilinear"
    net = make_model(ModelConfig(arch=ARCH, pretrained=exported), 4, CPU)
    mean, std = (torch.tensor(values) for values in (MEAN, STD))
    torch.testing.assert_close(net.scale.flatten(), 1 / (255 * std))
    torch.testing.assert_close(net.shift.flatten(), -mean / std)


def test_an_exported_head_for_other_classes_is_left_out(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = timm.create_model(ARCH, num_classes=len(NAMES))
    assert load_pretrained(model, exported, NAMES)
    assert not load_pretrained(model, exported, NAMES[::-1])
    assert "its head is for other classes and is left out" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["arch", "transform"])
def test_any_other_file_is_for_what_timm_says(exported: Path, tmp_path: Path, missing: str) -> None:
    path = rewritten(exported, tmp_path / "other.safetensors", {missing: None})
    assert own_input(ARCH, path) == own_input(ARCH, FROM_TIMM)


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("mean", None, "has no mean"),
        ("mean", "[0.5, 0.5", r"mean .* is '\[0\.5, 0\.5', not three numbers"),
        ("mean", "[0.5, NaN, 0.5]", "not three numbers"),
        ("std", "[0.5, 0.5, 0]", "std .*, not three positive numbers"),
        ("transform", "[24, 27]", "transform .*, not an object of resize, crop"),
        ("transform", '{"resize": 27, "crop": 24, "interpolation": "lanczos"}', r"\(bilinear or bicubic\)"),
        ("transform", '{"resize": 27, "crop": 24.5, "interpolation": "bicubic"}', r"crop \(pixels\)"),
    ],
)
def test_a_header_that_cannot_be_understood_is_one_line(
    exported: Path, tmp_path: Path, key: str, text: str | None, reason: str
) -> None:
    path = rewritten(exported, tmp_path / "strange.safetensors", {key: text})
    with pytest.raises(FeedlineError, match=reason) as caught:
        own_input(ARCH, path)
    assert f"the header of {path}" in str(caught.value)
    assert str(caught.value).endswith("; export the run again")
    assert "\n" not in str(caught.value)


def test_a_tag_that_timm_does_not_have_is_one_line() -> None:
    reason = r"arch is 'resnet50\.a1_in1', a tag that timm does not have; did you mean 'resnet50\.a1_in1k'\?"
    for make in (
        lambda: own_input("resnet50.a1_in1", FROM_TIMM),
        lambda: make_model(ModelConfig(arch="resnet50.a1_in1"), 4, CPU),
    ):
        with pytest.raises(FeedlineError, match=reason):
            make()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args: None)
    return tmp_path


def create(arch: str) -> None:
    make_model(ModelConfig(arch=arch, pretrained=FROM_TIMM), 4, CPU)


def test_without_network_one_line_says_how_to_bring_the_weights(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def unreachable(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append((address, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FeedlineError) as caught:
        create("resnet18.a1_in1k")
    assert str(caught.value) == (
        "cannot get timm's weights of 'resnet18.a1_in1k': huggingface.co is not reached (timed out); where there is a "
        "network, run `hf download timm/resnet18.a1_in1k model.safetensors --local-dir weights`, copy "
        "weights/model.safetensors here and give --pretrained model.safetensors"
    )
    monkeypatch.setenv("https_proxy", "http://proxy.local:3128")
    with pytest.raises(FeedlineError, match=r"proxy\.local is not reached"):
        create("resnet18.a1_in1k")
    assert asked == [(("huggingface.co", 443), 5.0), (("proxy.local", 3128), 5.0)]
    monkeypatch.delenv("https_proxy")
    monkeypatch.setenv("all_proxy", "other.local:3129")
    with pytest.raises(FeedlineError, match=r"other\.local is not reached"):
        create("resnet18.a1_in1k")
    assert asked[2:] == [(("other.local", 3129), 5.0)]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FeedlineError, match="HF_HUB_OFFLINE is set, and they are not in the cache; where"):
        create("resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("arch", "model_args"),
    # The second has custom_load: beside the hub timm knows an npz of it. One layer is enough.
    [(ARCH, ""), ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "depth=1")],
)
@pytest.mark.parametrize("older", [False, True])
def test_what_is_in_the_cache_needs_no_network(
    arch: str, model_args: str, older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(arch=arch, model_args=model_args, pretrained=FROM_TIMM)
    weights = timm.create_model(arch, num_classes=1000, **config.arguments()).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args: str(tmp_path / "model.safetensors"))
    monkeypatch.setattr(socket, "create_connection", None)
    if older:  # than the timm that reads a file which it is given without custom_load
        monkeypatch.setattr(_builder, "_PRETRAINED_SOURCE_KEYS", (), raising=False)
    net = make_model(config, 4, CPU, classes=NAMES)
    mine = net.model.state_dict()
    assert all(torch.equal(mine[name], weights[name]) for name in mine.keys() - head_parameters(net.model))
    assert not net.own_head


@pytest.mark.parametrize("change", [{"custom_load": "hf"}, {"hf_hub_filename": "weights.npz"}])
def test_what_timm_reads_from_the_hub_alone_is_not_given_as_a_file(
    change: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = timm.get_pretrained_cfg(ARCH)
    monkeypatch.setattr(hub, "known_to_timm", lambda arch: replace(known, **change))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args: str(tmp_path / "weights.npz"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FeedlineError, match="HF_HUB_OFFLINE is set"):
        create(ARCH)


def test_weights_that_there_are_not(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", None)
    with pytest.raises(
        FeedlineError, match=r"weights of 'cifar_resnet9': No pretrained.*; give --pretrained a file"
    ):
        create("cifar_resnet9")


def test_weights_of_another_network_say_of_which(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "cifar_resnet9", NAMES, 32)
    with pytest.raises(FeedlineError, match=r"does not fit the model: .*; it is of --arch cifar_resnet9"):
        make_model(ModelConfig(arch=ARCH, pretrained=run), 4, CPU)
