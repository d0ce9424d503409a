"""What NVML says about the GPU while one stage runs on it."""

from __future__ import annotations

import time

import torch

from bench.measure import Stage
from train.nvml import GpuMonitor, gpu_uuid

_INTERVAL_S = 0.1


def gpu_figures(stage: Stage, device: torch.device, seconds: float) -> dict[str, float]:
    """Run a stage alone for `seconds`; {} on a CPU, and what the GPU does not tell is left out.

    Units: `utilisation_percent` of time with a kernel running, `sm_utilisation_percent` of multiprocessors (Hopper and
    later), `jpeg_utilisation_percent` of the decoding engines, GiB in use on the card, watts, °C, joules, images
    per joule.
    """
    with GpuMonitor(gpu_uuid(device), _INTERVAL_S) as monitor:
        for _ in range(stage.lead_in):
            stage.step()
        stage.synchronize()
        monitor.read()
        images, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            images += stage.step()[0]
        stage.synchronize()
        found = monitor.read()
    if energy_j := found.get("energy_j"):
        found["images_per_joule"] = round(images / energy_j, 3)
    return found
