"""How busy the multiprocessors (SMs) of a GPU are: NVML's GPU performance monitoring, on Hopper and later.

`nvmlDeviceGetUtilizationRates` tells how long *some* kernel ran, which one busy SM of 132 satisfies; this tells which
share of the SMs was busy (NVML_GPM_METRIC_SM_UTIL), as a mean between two looks.
"""

from __future__ import annotations

import math
from typing import Any


class SmUtilisation:
    """Mean between two reads.

    Args:
        nvml: the library, or something that plays it.
        gpu: its handle of the GPU.
    """

    def __init__(self, nvml: Any, gpu: Any) -> None:
        self._nvml, self._gpu = nvml, gpu
        self._samples: list[Any] = []
        try:
            if nvml.nvmlGpmQueryDeviceSupport(gpu).isSupportedDevice:
                self._samples = [nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()]
                nvml.nvmlGpmSampleGet(gpu, self._samples[0])
        except nvml.NVMLError:  # an older driver, or no permission: what it does not tell is left out
            self.close()

    def read(self) -> float | None:
        """Percent of the SMs that were busy since the last read; None where the GPU does not tell."""
        if not self._samples:
            return None
        nvml, (before, now) = self._nvml, self._samples
        question = nvml.c_nvmlGpmMetricsGet_t()
        question.version, question.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, 1
        question.metrics[0].metricId = nvml.NVML_GPM_METRIC_SM_UTIL
        try:
            nvml.nvmlGpmSampleGet(self._gpu, now)
            question.sample1, question.sample2 = before, now
            nvml.nvmlGpmMetricsGet(question)
        except nvml.NVMLError:  # two looks that are too close tell nothing; the next one may
            return None
        self._samples.reverse()
        answer = question.metrics[0]
        known = answer.nvmlReturn == nvml.NVML_SUCCESS and math.isfinite(answer.value)
        return float(answer.value) if known else None

    def close(self) -> None:
        """Free the samples."""
        for sample in self._samples:
            self._nvml.nvmlGpmSampleFree(sample)
        self._samples = []
