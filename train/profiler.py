"""`--profile`: a PyTorch profiler trace of some steps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch


class Profiler:
    """Traces a few steps after the warm-up into a file for chrome://tracing or ui.perfetto.dev.

    Args:
        path: the trace's, ending in .json.gz; its folder is made.
        device: where the steps are computed.
        skip: steps before the first that is traced.
        steps: how many are traced.
        active: whether to trace at all.
    """

    def __init__(self, path: Path, device: torch.device, skip: int, steps: int, *, active: bool) -> None:
        self._path, self._profile = path, None
        if not active:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=max(0, skip - 1), warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )
        self._profile.start()

    def step(self) -> None:
        """Note the end of a step."""
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        """End it; says so where the run was too short for a trace."""
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()
            if not self._path.exists():
                print(
                    f"warning: the run was over before --profile had its steps; no {self._path}",
                    file=sys.stderr,
                )

    def _write(self, profile: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(self._path))
        print(f"profile: {self._path}", file=sys.stderr)
