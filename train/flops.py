"""Floating-point operations of a step, and what share of the GPU's peak they make up (MFU)."""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Peaks of dense products (no sparsity), TFLOPS, from NVIDIA's data sheets: bf16 and fp16, TF32, fp32 without tensor
# cores. Volta and Turing have neither bf16 nor TF32. A GPU that is not here has no MFU.
_TENSOR = ("bf16", "fp16", "tf32", "fp32")
_PEAKS: dict[str, tuple[float | None, float, float | None, float]] = {
    r"NVIDIA (H200|H100 80GB HBM3|H100 SXM5.*|GH200 480GB)": (989.4, 989.4, 494.7, 66.9),
    r"NVIDIA H[12]00 NVL": (835.5, 835.5, 417.5, 60.0),  # fewer watts than the SXM modules of their names
    r"NVIDIA H100 PCIe": (756.0, 756.0, 378.0, 51.2),
    r"NVIDIA A100.*": (312.0, 312.0, 156.0, 19.5),
    r"NVIDIA A30": (165.0, 165.0, 82.0, 10.3),
    r"NVIDIA A10": (125.0, 125.0, 62.5, 31.2),
    r"NVIDIA L40S": (362.05, 362.05, 183.0, 91.6),
    r"NVIDIA L4": (121.0, 121.0, 60.0, 30.3),
    r"Tesla V100-SXM2.*": (None, 125.0, None, 15.7),
    r"Tesla V100-PCIE.*": (None, 112.0, None, 14.0),
    r"Tesla T4": (None, 65.0, None, 8.1),
}


def peak_flops(gpu: str, precision: str, *, tf32: bool = False) -> float | None:
    """Peak operations per second of one GPU; None where it is not known.

    Args:
        gpu: the name that `torch.cuda.get_device_name` gives.
        precision: "bf16", "fp16" or "fp32".
        tf32: whether fp32 products may run as TF32.
    """
    column = _TENSOR.index("tf32" if precision == "fp32" and tf32 else precision)
    for pattern, peaks in _PEAKS.items():
        if re.fullmatch(pattern, gpu):
            peak = peaks[column]
            return None if peak is None else peak * 1e12
    return None


def forward_flops(net: nn.Module, side: int, device: torch.device) -> int:
    """Operations of the forward pass per image, a multiply-add counted as two; runs the model on one image.

    Training takes three times as many: the backward pass computes gradients of the inputs and of the weights
    (Kaplan et al. 2020, section 2.1). Recomputation for activation checkpointing does not count: it is no progress.

    Args:
        net: the model on uint8 images [B, H, W, 3], as it is before compilation.
        side: height and width of the images, pixels.
        device: where the model is.
    """
    image = torch.zeros((1, side, side, 3), dtype=torch.uint8, device=device)
    modes = {module: module.training for module in net.modules()}  # frozen norms differ from the rest
    net.eval()  # neither statistics nor generators change
    # Attention as plain products: the counter does not know every fused kernel.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(image)
    for module, training in modes.items():
        module.training = training
    return int(counter.get_total_flops())
