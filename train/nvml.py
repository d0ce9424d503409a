"""What the driver says about the GPU while a run goes on: NVML, asked from a background thread."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import mean
from types import TracebackType
from typing import Any

import pynvml
import torch

from train.gpm import SmUtilisation

_INTERVAL_S = 0.5

# Name → question: percent of time with a kernel running, percent of the JPEG decoding engines' time, GiB in use on the
# card, watts, °C.
_GAUGES: dict[str, Callable[[Any, Any], float]] = {
    "utilisation_percent": lambda nvml, gpu: float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
    "jpeg_utilisation_percent": lambda nvml, gpu: float(nvml.nvmlDeviceGetJpgUtilization(gpu)[0]),
    "memory_used_gib": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**30,
    "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "temperature_c": lambda nvml, gpu: float(nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
}


class GpuMonitor:
    """Samples one GPU. A context manager; without a GPU it does nothing.

    What a card does not tell (a MIG slice has no utilisation, old ones no energy) is left out.

    Args:
        uuid: the GPU's, as `gpu_uuid` gives it; None: there is none.
        interval_s: between two samples.
        nvml: the library, or something that plays it.
    """

    def __init__(self, uuid: str | None, interval_s: float = _INTERVAL_S, nvml: Any = pynvml) -> None:
        self._nvml, self._interval_s = nvml, interval_s
        self._gpu: Any = None
        self._sms: SmUtilisation | None = None
        self._samples: dict[str, list[float]] = {}
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="feedline-nvml", daemon=True)
        self._energy_before_j: float | None = None
        self._read_at = time.monotonic()
        self._aside_j = self._aside_s = 0.0
        if uuid is not None:
            self._open(uuid)

    def read(self) -> dict[str, float]:
        """Means since the last read; {} without a GPU.

        Of the memory it is the most, and `energy_j` is the joules since then, without those of `aside`. Utilisation:
        percent of time with a kernel running; `sm_…`, of the multiprocessors, on Hopper and later; `jpeg_…`, of the
        JPEG decoding engines.
        """
        if self._gpu is None:
            return {}
        self._sample()
        with self._lock:
            samples, self._samples = self._samples, {}
            found = {name: round(mean(values), 2) for name, values in samples.items()}
            if "memory_used_gib" in samples:
                found["memory_used_gib"] = round(max(samples["memory_used_gib"]), 2)
        busy = self._sms.read() if self._sms is not None else None
        if busy is not None:
            found["sm_utilisation_percent"] = round(busy, 2)
        now_j, now = self._energy_j(), time.monotonic()
        if now_j is not None and self._energy_before_j is not None:
            found["energy_j"] = now_j - self._energy_before_j - self._aside_j
        elif now_j is None and "power_w" in found:
            found["energy_j"] = found["power_w"] * (now - self._read_at - self._aside_s)
        self._energy_before_j, self._read_at = now_j, now
        self._aside_j = self._aside_s = 0.0
        return found

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave what happens meanwhile out of the energy, such as an evaluation out of training's."""
        if self._gpu is None:
            yield
            return
        before_j, began = self._energy_j(), time.monotonic()
        try:
            yield
        finally:
            after_j = self._energy_j()
            if before_j is not None and after_j is not None:
                self._aside_j += after_j - before_j
            self._aside_s += time.monotonic() - began

    def _energy_j(self) -> float | None:
        return self._ask(lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000)

    def _open(self, uuid: str) -> None:
        try:
            self._nvml.nvmlInit()
            self._gpu = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self._nvml.NVMLError as error:
            print(f"warning: NVML does not know {uuid} ({error}): no GPU figures", file=sys.stderr)
            return
        self._sms = SmUtilisation(self._nvml, self._gpu)
        self.read()

    def _sample(self) -> None:
        for name, gauge in _GAUGES.items():
            value = self._ask(gauge)
            if value is not None:
                with self._lock:
                    self._samples.setdefault(name, []).append(value)

    def _ask(self, gauge: Callable[[Any, Any], float]) -> float | None:
        try:
            return gauge(self._nvml, self._gpu)
        except self._nvml.NVMLError:  # a card that does not know it, or just now not
            return None

    def _run(self) -> None:
        while not self._done.wait(self._interval_s):
            self._sample()

    def __enter__(self) -> GpuMonitor:
        """Start sampling."""
        if self._gpu is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop sampling."""
        if self._gpu is not None:
            self._done.set()
            self._thread.join()
            if self._sms is not None:
                self._sms.close()
            self._nvml.nvmlShutdown()


def gpu_uuid(device: torch.device) -> str | None:
    """NVML's name of a CUDA device; None for another one."""
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
