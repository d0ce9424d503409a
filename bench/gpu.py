"""What NVML says about the GPU while something runs on it."""

from __future__ import annotations

import threading
from statistics import mean
from types import TracebackType
from typing import Any

import pynvml
import torch

_INTERVAL_S = 0.1


class GpuSampler:
    """Samples utilisation, memory and power in the background. A context manager; on a CPU it does nothing."""

    def __init__(self, device: torch.device) -> None:
        self._samples: list[tuple[int, int, int]] = []
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        if device.type == "cuda":
            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._thread = threading.Thread(target=self._sample, name="feedline-nvml", daemon=True)

    def summary(self) -> dict[str, Any] | None:
        """Means over the samples so far; None without a GPU.

        Units: percent of time with a kernel running, GiB in use on the card, watts.
        """
        if not self._samples:
            return None
        busy, memory_bytes, power_mw = zip(*self._samples, strict=True)
        return {
            "utilisation_percent": round(mean(busy), 1),
            "memory_used_gib": round(max(memory_bytes) / 2**30, 2),
            "power_w": round(mean(power_mw) / 1000, 1),
            "samples": len(self._samples),
        }

    def _sample(self) -> None:
        while not self._done.wait(_INTERVAL_S):
            busy = pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle).used
            self._samples.append((busy, memory, pynvml.nvmlDeviceGetPowerUsage(self._handle)))

    def __enter__(self) -> GpuSampler:
        """Start sampling."""
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop sampling."""
        if self._thread is not None:
            self._done.set()
            self._thread.join()
            pynvml.nvmlShutdown()
