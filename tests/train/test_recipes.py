"""Recipes against the published ones, whose values stand here literally, with their source."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.nn import functional as F

from loader import ColorJitter, Compose, PadCrop, RandAugment, RandomErasing, RandomResizedCrop, ThreeAugment
from train.config import Config, flat
from train.model import make_model
from train.optim import make_optimizer
from train.recipes import RECIPES, recipe
from train.resolution import size_at
from train.schedule import Length, lr_at, run_length

IMAGENET = 1_281_167  # training images of ILSVRC-2012
CPU = torch.device("cpu")


def length(config: Config) -> Length:
    return run_length(config.schedule, IMAGENET, config.input.batch_size)


def lr_of(config: Config, epoch: float) -> float:
    """Learning rate at the beginning of an epoch; an epoch's part is allowed."""
    run = length(config)
    return lr_at(round(epoch * run.steps_per_epoch), config.optim.lr, config.schedule, run)


def check(config: Config, published: dict[str, Any]) -> None:
    found = flat(config)
    assert {name: found[name] for name in published} == published


def last_norms(config: Config) -> set[float]:
    """First weights of the last norm in every residual block, of the network as the recipe makes it."""
    model = make_model(config.model, 10, CPU).model
    blocks = [m for m in model.modules() if hasattr(m, "bn2")]
    return {w for b in blocks for w in getattr(b, "bn3", b.bn2).weight.tolist()}


def test_names() -> None:
    assert all(recipe(name).recipe == name for name in RECIPES)


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"digits"}))
def test_every_recipe_can_be_made(name: str) -> None:
    config = recipe(name)
    classes = 10 if name.startswith("cifar10") else 1000
    with torch.device("meta"):
        model = timm.create_model(config.model.arch, num_classes=classes, **config.model.arguments())
    make_optimizer(model, config.optim)
    config.input.train_transform()


def test_resnet50_after_nvidia() -> None:
    """NVIDIA/DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5, README and configs.yml."""
    config = recipe("resnet50_imagenet")
    check(config, {"arch": "resnet50", "optimizer": "momentum", "momentum": 0.875, "label_smoothing": 0.1})
    assert config.optim.lr == pytest.approx(0.256 * config.input.batch_size / 256)
    assert config.optim.weight_decay == 1 / 32768
    crop = config.input.train_transform()
    assert crop == RandomResizedCrop(size=224, scale=(0.08, 1.0), hflip=0.5)
    check(config, {"eval_resize": 256, "eval_size": 224})
    assert last_norms(config) == {1.0}  # last_bn_0_init: False
    # Cosine after a warm-up of 8 epochs, over 90: lr_cosine_policy of its training code, at the beginning of epochs.
    for epoch in range(8, 90):
        expected = 2.048 * 0.5 * (1 + math.cos(math.pi * (epoch - 8) / 82))
        assert lr_of(config, epoch) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert lr_of(config, 4) == pytest.approx(2.048 / 2, rel=0.01)


# Wightman, Touvron, Jégou 2021, table 2.
STRIKES_BACK: dict[str, dict[str, Any]] = {
    "a1": {"size": 224, "duration": "600ep", "lr": 5e-3, "weight_decay": 0.01, "label_smoothing": 0.1,
           "drop_path": 0.05, "repeats": 3, "augment": "rand-m7-mstd0.5-inc1", "mixup": 0.2},
    "a2": {"size": 224, "duration": "300ep", "lr": 5e-3, "weight_decay": 0.02, "label_smoothing": 0.0,
           "drop_path": 0.05, "repeats": 3, "augment": "rand-m7-mstd0.5-inc1", "mixup": 0.1},
    "a3": {"size": 160, "duration": "100ep", "lr": 8e-3, "weight_decay": 0.02, "label_smoothing": 0.0,
           "drop_path": 0.0, "repeats": 1, "augment": "rand-m6-mstd0.5-inc1", "mixup": 0.1},
}  # fmt: skip
STRIKES_BACK_ALL = {"arch": "resnet50", "batch_size": 2048, "optimizer": "lamb", "warmup": "5ep", "decay": "cosine",
                    "cutmix": 1.0, "loss": "bce", "eval_size": 224, "drop_rate": 0.0, "erase": 0.0, "hflip": 0.5,
                    "clip_grad": None, "ema_decay": 0.0, "color_jitter": 0.0}  # fmt: skip


@pytest.mark.parametrize("name", STRIKES_BACK)
def test_resnet_strikes_back(name: str) -> None:
    config = recipe(f"resnet50_{name}")
    check(config, STRIKES_BACK[name] | STRIKES_BACK_ALL)
    check(
        config, {"bce_threshold": 0.2, "warmup_lr": 1e-4, "final_lr": 1e-6}
    )  # timm's arguments, not the paper
    assert config.input.eval_resize == math.floor(224 / 0.95)  # test crop ratio
    transform = config.input.train_transform()
    assert isinstance(transform, Compose)
    assert transform.crop == RandomResizedCrop(size=config.input.size, interpolation="bicubic")
    (policy,) = transform.policies
    assert isinstance(policy, RandAugment)
    assert (policy.magnitude, policy.std, policy.increasing) == (6.0 if name == "a3" else 7.0, 0.5, True)
    assert transform.erasing is None
    same_as_timms_cosine(config)


def same_as_timms_cosine(config: Config) -> None:
    """Timm's scheduler by epochs, as its training script and DeiT's call it, at the beginning of each epoch."""
    epochs, peak = length(config).epochs, config.optim.lr
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = config.schedule
    timms = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=schedule.final_lr, warmup_t=5, warmup_lr_init=schedule.warmup_lr
    )
    for epoch in range(epochs):
        expected = timms._get_lr(epoch)[0]
        assert lr_of(config, epoch) == pytest.approx(
            expected, rel=1e-3, abs=peak / length(config).steps_per_epoch / 4
        )


# github.com/libffcv/ffcv-imagenet: rn18_configs/*.yaml, rn50_configs/*.yaml. World size 1 and 8.
FFCV = {
    "resnet18": {"lr": 0.5, "batch_size": 1024, "world_size": 1, "weight_decay": 5e-5},
    "resnet50": {"lr": 1.7, "batch_size": 512, "world_size": 8, "weight_decay": 1e-4},
}
FFCV_ALL = {"momentum": 0.9, "label_smoothing": 0.1, "min_res": 160, "max_res": 192, "val_res": 256}
FFCV_RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}


def ffcv_resolution(epoch: int, start_ramp: int, end_ramp: int) -> int:
    """`get_resolution` of train_imagenet.py."""
    if epoch <= start_ramp:
        return 160
    if epoch >= end_ramp:
        return 192
    interpolated = np.interp([epoch], [start_ramp, end_ramp], [160, 192])
    return int(np.round(interpolated[0] / 32)) * 32


@pytest.mark.parametrize("arch", FFCV)
@pytest.mark.parametrize("epochs", FFCV_RAMPS)
def test_ffcv(arch: str, epochs: int) -> None:
    config, published = recipe(f"ffcv_{arch}_{epochs}ep"), FFCV[arch]
    lr = float(published["lr"])
    check(
        config,
        {"arch": arch, "optimizer": "momentum", "lr": lr, "momentum": FFCV_ALL["momentum"],
         "weight_decay": published["weight_decay"], "label_smoothing": FFCV_ALL["label_smoothing"],
         "batch_size": published["batch_size"] * published["world_size"], "duration": f"{epochs}ep",
         "blurpool": True, "flip_tta": True, "eval_size": FFCV_ALL["val_res"], "loss": "ce", "precision": "fp16"},
    )  # fmt: skip
    assert config.input.eval_resize == round(256 / (224 / 256))
    assert (
        config.model.arguments()["zero_init_last"] is False
    )  # torchvision's networks, zero_init_residual=False
    assert config.input.train_transform() == RandomResizedCrop(size=192, scale=(0.08, 1.0), hflip=0.5)
    run = length(config)
    at = size_at(config.resolution, config.input.size, run)
    assert at is not None
    assert [at(e, 0) for e in range(epochs)] == [
        ffcv_resolution(e, *FFCV_RAMPS[epochs]) for e in range(epochs)
    ]
    # get_cyclic_lr, interpolated within epochs. Its rise begins a step earlier, at its lowest value.
    steps = np.arange(run.steps + 1) / run.steps_per_epoch
    expected = np.interp(steps, [0, 2, epochs], [1e-4 * lr, lr, 0])
    mine = np.array([lr_at(s, lr, config.schedule, run) for s in range(run.steps)])
    peak = 2 * run.steps_per_epoch
    np.testing.assert_allclose(mine[:peak], expected[1 : peak + 1], rtol=1e-9)
    np.testing.assert_allclose(mine[peak:], expected[peak:-1], rtol=1e-9, atol=1e-12)


class FfcvBlurPool(nn.Module):
    """`BlurPoolConv2d` of FFCV's train_imagenet.py."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel = torch.tensor([[[[1, 2, 1], [2, 4, 2], [1, 2, 1]]]]) / 16.0
        self.conv, self.blur = conv, kernel.repeat(conv.in_channels, 1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(
            F.conv2d(x, self.blur, stride=1, padding=(1, 1), groups=self.conv.in_channels)
        )
        return out


def ffcv_apply(model: nn.Module) -> None:
    """`apply_blurpool` of FFCV's train_imagenet.py."""
    for name, child in model.named_children():
        if isinstance(child, nn.Conv2d) and np.max(child.stride) > 1 and child.in_channels >= 16:
            setattr(model, name, FfcvBlurPool(child))
        else:
            ffcv_apply(child)


def test_blurpool_is_ffcvs_and_leaves_the_keys() -> None:
    config = recipe("ffcv_resnet18_16ep").model
    torch.manual_seed(0)
    mine = make_model(config, 10, CPU).model.eval()
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", num_classes=10, zero_init_last=False).eval()
    assert mine.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        unblurred = plain(images)
        ffcv_apply(plain)
        torch.testing.assert_close(mine(images), plain(images), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(unblurred, plain(images), rtol=1e-2)


@pytest.mark.parametrize("arch", FFCV)
def test_ffcvs_blocks_start_with_their_last_norm_at_1(arch: str) -> None:
    """FFCV takes torchvision's networks; also behind the blurred convolutions."""
    assert last_norms(recipe(f"ffcv_{arch}_16ep")) == {1.0}


def test_deit3_small() -> None:
    """README_revenge.md of facebookresearch/deit, ViT-S on ImageNet-1k; engine.py; defaults of main.py."""
    config = recipe("deit3_small")
    check(
        config,
        {"batch_size": 256 * 8, "lr": 4e-3, "duration": "800ep", "weight_decay": 0.05, "size": 224, "erase": 0.0,
         "label_smoothing": 0.0, "warmup": "5ep", "drop_rate": 0.0, "warmup_lr": 1e-6, "mixup": 0.8,
         "drop_path": 0.05, "cutmix": 1.0, "loss": "bce", "color_jitter": 0.3, "optimizer": "lamb",
         "decay": "cosine", "repeats": 3,  # RASampler's num_repeats
         "bce_threshold": 0.0,  # targets.gt(0.0)
         "final_lr": 1e-5, "eps": 1e-8,  # --min-lr, --opt-eps
         "eval_size": 224, "eval_resize": 224},  # --eval-crop-ratio 1.0
    )  # fmt: skip
    transform = config.input.train_transform()
    assert isinstance(transform, Compose)
    assert transform.crop == RandomResizedCrop(size=224, scale=(0.08, 1.0), interpolation="bicubic")
    assert transform.policies == (ThreeAugment(), ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3))
    assert config.model.arguments()["init_values"] == 1e-4  # deit_small_patch16_LS
    same_as_timms_cosine(config)


def test_convnext_tiny() -> None:
    """TRAINING.md of facebookresearch/ConvNeXt and the defaults of its main.py; schedule: utils.cosine_scheduler."""
    config = recipe("convnext_tiny")
    check(
        config,
        {"arch": "convnext_tiny", "drop_path": 0.1, "batch_size": 4 * 8 * 128, "lr": 4e-3, "duration": "300ep",
         "warmup": "20ep", "weight_decay": 0.05, "optimizer": "adamw", "eps": 1e-8, "final_lr": 1e-6,
         "betas": (0.9, 0.999), "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "mix_prob": 1.0, "mix_switch": 0.5,
         "erase": 0.25,
         "erase_mode": "pixel", "augment": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic", "ema_decay": 0.9999,
         "clip_grad": None, "size": 224, "eval_resize": 256, "repeats": 1},
    )  # fmt: skip
    transform = config.input.train_transform()
    assert isinstance(transform, Compose)
    assert transform.erasing == RandomErasing(probability=0.25, mode="pixel")
    run = length(config)
    warmup = 20 * run.steps_per_epoch
    rise = np.linspace(0, 4e-3, warmup)
    left = np.arange(run.steps - warmup)
    fall = 1e-6 + 0.5 * (4e-3 - 1e-6) * (1 + np.cos(math.pi * left / len(left)))
    mine = np.array([lr_at(s, 4e-3, config.schedule, run) for s in range(run.steps)])
    np.testing.assert_allclose(mine[warmup:], fall, rtol=1e-9)
    np.testing.assert_allclose(mine[:warmup], rise, atol=4e-3 / (warmup - 1))  # a step apart


def test_cifar10_gpu() -> None:
    """Hyp of airbench94.py of KellerJordan/cifar10-airbench; its loss is a sum, ours a mean."""
    lr, weight_decay, momentum, batch = 11.5, 0.0153, 0.85, 1024
    kilostep = 1024 * (1 + 1 / (1 - momentum))
    config = recipe("cifar10_gpu")
    check(config, {"batch_size": batch, "momentum": momentum, "label_smoothing": 0.2, "pad": 2, "bias_lr_scale": 64.0,
                   "optimizer": "sgd", "duration": "9.9ep", "mean": (0.4914, 0.4822, 0.4465)})  # fmt: skip
    assert config.optim.lr == pytest.approx(lr / kilostep * batch)
    assert config.optim.weight_decay == pytest.approx(
        weight_decay * batch / kilostep / (lr / kilostep) / batch
    )
    assert config.input.train_transform() == PadCrop(size=32, pad=2, hflip=0.5)
    run = run_length(config.schedule, 50_000, batch)
    assert run.steps == 475  # airbench rounds 475.2 up
    mine = np.array([lr_at(s, config.optim.lr, config.schedule, run) for s in range(475)])
    expected = np.interp(np.arange(476), [0, int(0.23 * 476), 476], [0.2, 1, 0.07])  # triangle()
    np.testing.assert_allclose(mine / config.optim.lr, expected[:475], atol=0.01)


def test_finetune() -> None:
    """TRAINING.md of facebookresearch/ConvNeXt, fine-tuning: what is published of it."""
    config = recipe("finetune")
    check(config, {"layer_decay": 0.8, "weight_decay": 1e-8, "duration": "30ep", "mixup": 0.0, "cutmix": 0.0})
    # 0.8 is for weights from more than ImageNet-1k, which timm's are.
    assert timm.get_pretrained_cfg(config.model.arch).tag.startswith("in12k")
    model = timm.create_model("test_convnext", num_classes=5)
    rates = sorted({group["lr_scale"] for group in make_optimizer(model, config.optim).param_groups})
    assert rates[-1] == 1
    assert all(b / a == pytest.approx(1 / 0.8) for a, b in pairwise(rates))
