"""What a run tells about itself without making the accelerator wait: a summary of the parts, and their settings."""

from __future__ import annotations

import resource
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from shard.errors import FeedlineError
from train.distributed import World
from train.flops import forward_flops, peak_flops
from train.history import History
from train.loss_window import LossWindow, NonFiniteError, StepRecord
from train.meter import PHASES, Meter, Rate
from train.metrics import MEASURED, Metrics
from train.naming import nearest
from train.nvml import GpuMonitor, gpu_uuid
from train.profiler import Profiler
from train.progress import Progress, clock, rate_text
from train.step import TrainStep
from train.trackers import TRACKERS, open_trackers

__all__ = [
    "MEASURED", "Gauges", "LossWindow", "Meter", "Metrics", "NonFiniteError", "Progress", "Rate", "StepRecord",
    "TelemetryConfig", "clock", "open_metrics", "rate_text",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """Telemetry."""

    trackers: str = ""
    """Where metrics go beside metrics.jsonl: tensorboard, wandb, mlflow, separated by commas."""
    profile: bool = False
    """Write a PyTorch profiler trace of some steps of rank 0 into RUN/profile."""
    profile_steps: int = 5
    """How many, after the warm-up."""

    def __post_init__(self) -> None:
        """Reject a tracker that there is not."""
        if self.profile_steps < 1:
            raise FeedlineError(f"profile_steps is {self.profile_steps}; it must be at least 1")
        for name in self.names:
            if name not in TRACKERS:
                raise FeedlineError(f"trackers has {name!r}; {nearest(name, TRACKERS)}")

    @property
    def names(self) -> list[str]:
        """The trackers' names."""
        return [name.strip() for name in self.trackers.split(",") if name.strip()]


def open_metrics(
    path: Path, config: TelemetryConfig, settings: dict[str, Any], kept: int, step: int, world: World
) -> Metrics:
    """Open metrics.jsonl at `path`, and on rank 0 history.jsonl beside it and the trackers.

    Args:
        path: of the file, in the run folder.
        config: which trackers.
        settings: of the run, by name.
        kept: bytes of the file that stay; 0 for a new run.
        step: a resumed run goes on after it.
        world: the ranks.
    """
    names = config.names if world.is_main else []
    trackers = open_trackers(names, path.parent, settings, step if kept else 0)
    history = History(path.with_name("history.jsonl"), step, world) if world.is_main else None
    return Metrics(path, kept, active=world.is_main, trackers=trackers, history=history)


class Gauges:
    """What is measured beside the losses: memory, MFU, the GPU, a profile. A context manager.

    Args:
        config: which.
        step: whose operations are counted.
        world: the ranks; rank 0 measures, its own device.
        root: the run folder.
        warmup: steps that a profile leaves out.
    """

    def __init__(
        self, config: TelemetryConfig, step: TrainStep, world: World, root: Path, warmup: int
    ) -> None:
        self._step, self._world = step, world
        self._flops: dict[int, int] = {}
        device = world.device
        with ExitStack() as stack:
            uuid = gpu_uuid(device) if world.is_main else None
            self._monitor = stack.enter_context(GpuMonitor(uuid))
            traces = config.profile and world.is_main
            path = root / "profile" / "trace.json.gz"
            self.profiler = Profiler(path, device, warmup, config.profile_steps, active=traces)
            stack.callback(self.profiler.close)
            self._stack = stack.pop_all()

    def read(self, rate: Rate, batch_size: int, side: int) -> dict[str, Any]:
        """Fields of a line of metrics; the device must have finished. What is not known is left out.

        Args:
            rate: of the steps since the last line.
            batch_size: global.
            side: of the images, pixels.
        """
        found: dict[str, Any] = {
            "time_s": {phase: round(rate.phases[phase], 4) for phase in PHASES if phase in rate.phases},
            "peak_memory_gib": round(peak_memory_bytes(self._world.device) / 2**30, 3),
        }
        speed = rate.images_per_s(batch_size)
        utilisation = self.mfu(speed / self._world.size, side) if speed else None
        if utilisation is not None:
            found["mfu"] = round(utilisation, 4)
        gpu = self._monitor.read()
        energy_j = gpu.pop("energy_j", 0.0)
        if gpu:
            found["gpu"] = gpu
        if energy_j and rate.steps:
            found["images_per_joule"] = round(rate.steps * batch_size / self._world.size / energy_j, 3)
        return found

    def aside(self) -> AbstractContextManager[None]:
        """Leave what happens meanwhile out of training's energy."""
        return self._monitor.aside()

    def mfu(self, images_per_s: float, side: int) -> float | None:
        """Share of the GPU's peak that one rank's images/s make up; None on a CPU or an unknown GPU."""
        device = self._world.device
        if device.type != "cuda":
            return None
        tf32 = torch.backends.cuda.matmul.allow_tf32
        peak = peak_flops(torch.cuda.get_device_name(device), self._step.config.precision, tf32=tf32)
        if peak is None:
            return None
        if side not in self._flops:
            self._flops[side] = forward_flops(self._step.net, side, device)
        return images_per_s * 3 * self._flops[side] / peak

    def __enter__(self) -> Gauges:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop measuring."""
        self._stack.close()


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
