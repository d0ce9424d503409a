from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from train.nvml import GpuMonitor, gpu_uuid


class FakeNvml:
    """Plays the driver: figures rise with every question; what is in `missing` is not supported."""

    NVML_TEMPERATURE_GPU = NVML_SUCCESS = 0
    NVML_GPM_METRICS_GET_VERSION, NVML_GPM_METRIC_SM_UTIL = 1, 2

    class NVMLError(Exception):
        pass

    def __init__(self, missing: tuple[str, ...] = (), here: bool = True) -> None:
        self.missing, self.here, self.open, self.busy, self.energy_mj = missing, here, 0, 0, 5_000
        self.samples = self.looks = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not self.here:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, gpu: str) -> Any:
        self._require("utilisation")
        self.busy += 10
        return SimpleNamespace(gpu=self.busy)

    def nvmlDeviceGetJpgUtilization(self, gpu: str) -> list[int]:
        self._require("jpeg")
        return [70, 100_000]

    def nvmlGpmQueryDeviceSupport(self, gpu: str) -> Any:
        self._require("gpm")
        return SimpleNamespace(isSupportedDevice=1)

    def nvmlGpmSampleAlloc(self) -> list[int]:
        self.samples += 1
        return [0]

    def nvmlGpmSampleFree(self, sample: list[int]) -> None:
        self.samples -= 1

    def nvmlGpmSampleGet(self, gpu: str, sample: list[int]) -> None:
        self.looks += 1
        sample[0] = self.looks**2

    def c_nvmlGpmMetricsGet_t(self) -> Any:
        return SimpleNamespace(metrics=[SimpleNamespace()])

    def nvmlGpmMetricsGet(self, question: Any) -> None:
        (answer,) = question.metrics
        assert (question.version, question.numMetrics, answer.metricId) == (1, 1, 2)
        answer.nvmlReturn, answer.value = 0, question.sample2[0] - question.sample1[0]

    def nvmlDeviceGetMemoryInfo(self, gpu: str) -> Any:
        return SimpleNamespace(used=self.busy * 2**30)

    def nvmlDeviceGetPowerUsage(self, gpu: str) -> int:
        return 300_000

    def nvmlDeviceGetTemperature(self, gpu: str, sensor: int) -> int:
        return 61

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: str) -> int:
        self._require("energy")
        self.energy_mj += 600_000
        return self.energy_mj

    def _require(self, name: str) -> None:
        if name in self.missing:
            raise self.NVMLError("Not Supported")


def test_means_since_the_last_read_and_energy() -> None:
    nvml = FakeNvml()
    monitor = GpuMonitor("GPU-1", nvml=nvml)
    for _ in range(3):
        monitor._sample()
    found = monitor.read()  # a fourth sample; the first was when it was made
    assert found == {
        "utilisation_percent": 35.0, "memory_used_gib": 50.0, "power_w": 300.0, "temperature_c": 61.0,
        "energy_j": 600.0, "jpeg_utilisation_percent": 70.0, "sm_utilisation_percent": 5.0,
    }  # fmt: skip
    assert monitor.read()["utilisation_percent"] == 60.0


def test_two_looks_that_tell_nothing_do_not_end_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of samples that are hardly apart the driver gives an error, or no number."""
    nvml = FakeNvml()
    answer, told = nvml.nvmlGpmMetricsGet, iter(["error", "nan"])

    def close_together(question: Any) -> None:
        answer(question)
        how = next(told, "number")
        if how == "error":
            raise nvml.NVMLError("Unknown Error")
        if how == "nan":
            question.metrics[0].value = float("nan")

    monkeypatch.setattr(nvml, "nvmlGpmMetricsGet", close_together)
    with GpuMonitor("GPU-1", interval_s=60, nvml=nvml) as monitor:  # which looks, and gets the error
        assert "sm_utilisation_percent" not in monitor.read()
        assert monitor.read()["sm_utilisation_percent"] > 0
    assert nvml.samples == 0


def test_what_a_card_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monitor = GpuMonitor("GPU-1", nvml=FakeNvml(missing=("utilisation", "energy")))
    now[0] = 4.0
    found = monitor.read()
    assert "utilisation_percent" not in found
    assert found["energy_j"] == 1200.0  # 300 W for 4 s


def test_samples_in_the_background_and_closes() -> None:
    nvml = FakeNvml()
    with GpuMonitor("GPU-1", interval_s=0.001, nvml=nvml):
        deadline = time.monotonic() + 20
        while nvml.busy < 50 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert nvml.busy >= 50
    assert nvml.open == 0


def test_a_gpu_that_nvml_does_not_know_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with GpuMonitor("GPU-1", nvml=FakeNvml(here=False)) as monitor:
        assert monitor.read() == {}
    assert "NVML does not know GPU-1 (Not Found)" in capsys.readouterr().err


def test_a_cpu_has_none() -> None:
    assert gpu_uuid(torch.device("cpu")) is None
    with GpuMonitor(None) as monitor:
        assert monitor.read() == {}


@pytest.mark.gpu
def test_a_real_card() -> None:
    with GpuMonitor(gpu_uuid(torch.device("cuda", 0))) as monitor:
        assert monitor.read()["memory_used_gib"] > 0
