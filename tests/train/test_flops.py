from __future__ import annotations

import pytest
import torch

from train.flops import forward_flops, peak_flops
from train.model import ModelConfig, make_model

CPU = torch.device("cpu")


def flops(arch: str, side: int, classes: int = 1000) -> int:
    return forward_flops(make_model(ModelConfig(arch=arch), classes, CPU), side, CPU)


def test_published_figures() -> None:
    # 4.09 and 4.6 G multiply-adds: He et al. 2016 with torchvision's stride, Touvron et al. 2021.
    assert flops("resnet50", 224) == pytest.approx(2 * 4.09e9, rel=0.01)
    assert flops("deit_small_patch16_224", 224) == pytest.approx(2 * 4.6e9, rel=0.02)


def test_counting_leaves_the_model_as_it_was() -> None:
    net = make_model(ModelConfig(arch="test_efficientnet"), 4, CPU).train()
    net.model.bn1.eval()  # type: ignore[union-attr, operator]  # as a norm that is frozen
    modes = [module.training for module in net.modules()]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    assert forward_flops(net, 32, CPU) > 0
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("gpu", "precision", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989.4e12),
        ("NVIDIA H200", "bf16", False, 989.4e12),
        ("NVIDIA H200 NVL", "bf16", False, 835.5e12),  # half of the data sheet's 1,671, which are sparse
        ("NVIDIA H100 NVL", "bf16", False, 835.5e12),
        ("NVIDIA H100 NVL", "fp32", True, 417.5e12),
        ("NVIDIA H100 PCIe", "bf16", False, 756e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", True, 156e12),
        ("NVIDIA A100 80GB PCIe", "fp32", False, 19.5e12),
        ("Tesla T4", "fp16", False, 65e12),
        ("Tesla T4", "bf16", False, None),
        ("NVIDIA A10", "bf16", False, 125e12),
        ("NVIDIA A10G", "bf16", False, None),  # another chip than the A10: not guessed
        ("NVIDIA GeForce RTX 9999", "bf16", False, None),
    ],
)
def test_peaks(gpu: str, precision: str, tf32: bool, peak: float | None) -> None:
    assert peak_flops(gpu, precision, tf32=tf32) == peak
