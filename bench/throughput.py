"""`python -m bench throughput`: make the stages, measure them interleaved, and make a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gpu import gpu_figures
from bench.intervals import Interval, median_interval, ratio_figures, ratio_interval
from bench.long_epochs import with_long_epochs
from bench.measure import Series, Stage, measure
from bench.page_cache import Eviction, advice, memory_bytes, state
from bench.peers.base import Job
from bench.peers.isolated import Isolated
from bench.report import decodes_on_gpu
from bench.stages import Copy, Decode, Load, Read, Real, Synthetic
from loader import Loader, RandomResizedCrop
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.build import make_step
from train.config import Config, to_dict
from train.distributed import World
from train.environment import environment

OWN = ("read", "decode", "loader", "copy", "synthetic", "real")
PEERS = ("dali", "torchvision")  # of those in bench.peers


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        config: a training configuration; gives data, transform, batch size, model and precision.
        stages: names out of `OWN` and `PEERS`.
        repeats: of the whole, interleaved.
        seconds: per stage and repeat.
        threads: CPU threads or worker processes for decoding, of everyone.
        cold: whether the split is evicted from the page cache before every measurement.
    """

    config: Config
    stages: tuple[str, ...]
    repeats: int
    seconds: float
    threads: int
    cold: bool = False


def throughput(plan: Plan, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and return the record: figures per stage, ratios, environment; JSON-able.

    Raises:
        FeedlineError: a stage cannot be made, such as a peer that is not installed.
    """
    config = plan.config
    if config.data is None:
        raise FeedlineError("data is missing; give --data DATASET")
    dataset = Dataset.open(config.data)
    with ExitStack() as stack:
        repeated = with_long_epochs(dataset, config.input.train_split, config.input.batch_size)
        stages: list[Stage] = []
        for stage in _Maker(plan, repeated, device).make():
            stack.callback(stage.close)  # now: the next one may fail
            stages.append(stage)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        split = dataset.split(config.input.train_split)
        size_bytes = sum(split.shard_bytes)
        eviction = Eviction(split) if plan.cold else None
        series = measure(stages, plan.repeats, plan.seconds, say, eviction or (lambda: None))
        # Utilisation means something for one stage only: look again while each runs alone.
        gpu = {
            stage.name: gpu_figures(stage, device, max(plan.seconds, 3.0))
            for stage in _of_gpu(stages, device)
        }
    found = {one.name: one for one in series}
    load = next((stage for stage in stages if isinstance(stage, Load)), None)
    default = load.name if load is not None else None
    return {
        "benchmark": "throughput",
        "environment": environment(device),
        "settings": {
            "dataset": str(dataset.root),
            "samples": len(split),
            "device": str(device),
            "repeats": plan.repeats,
            "seconds": plan.seconds,
            "threads": plan.threads,
            "page_cache": eviction.state if eviction is not None else state(size_bytes),
            "page_cache_advice": advice(size_bytes, memory_bytes(), cold=plan.cold),
            "config": to_dict(config),
        },
        "default_loader": default,
        "stages": [_figures(one, ceiling(one.name, found, default, device)) for one in series],
        **_ratios(found, default),
        "gpu": gpu.get("real"),
        "gpu_by_stage": gpu,
        "hw_decoder_load": load.loader.hw_decoder_load if load is not None else None,
        "peak_gpu_memory_gib": _peak_gib(device),
    }


class _Maker:
    """Makes stages by name."""

    def __init__(self, plan: Plan, dataset: Dataset, device: torch.device) -> None:
        self.plan, self.dataset, self.device = plan, dataset, device
        self.input = plan.config.input
        self.split = dataset.split(self.input.train_split)

    def make(self) -> Iterator[Stage]:
        """Make all stages of the plan; the default loader comes before the other backend's."""
        for name in self.plan.stages:
            if name == "read":
                yield Read(self.split)
            elif name == "decode":
                yield Decode(self.split, self.input.train_transform(), self.plan.threads)
            elif name == "loader":
                yield from self._loaders()
            elif name == "copy":
                yield Copy(self.input.batch_size, self.input.size, self.device)
            elif name in PEERS:
                yield self._peer(name)
        if {"synthetic", "real"} & set(self.plan.stages):
            yield from self._training()

    def _loader(self, backend: str) -> Loader:
        return Loader(
            self.dataset,
            self.input.train_split,
            self.input.train_transform(),
            batch_size=self.input.batch_size,
            shuffle=True,
            drop_last=True,
            device=self.device,
            backend=backend,
            threads=self.plan.threads,
        )

    def _loaders(self) -> Iterator[Stage]:
        first = self._loader(self.input.loader_backend)
        yield Load(first, f"loader_{first.backend}", f"loader ({first.backend})")
        if self.input.loader_backend == "auto":
            other = "torch" if first.backend == "dali" else "dali"
            yield Load(self._loader(other), f"loader_{other}", f"loader ({other} backend)")

    def _training(self) -> Iterator[Stage]:
        # One step for both, so that the same kernels, weights and caches serve them.
        step = make_step(self.plan.config, len(self.dataset.classes), World(device=self.device))
        step.net.train()
        if "synthetic" in self.plan.stages:
            with self._loader(self.input.loader_backend) as loader:
                batch = next(iter(loader))
            yield Synthetic(step, batch)
        if "real" in self.plan.stages:
            yield Real(step, self._loader(self.input.loader_backend))

    def _peer(self, name: str) -> Stage:
        crop = self.input.train_transform()
        if not isinstance(crop, RandomResizedCrop):
            raise FeedlineError(
                f"the peers do a random resized crop, this configuration has crop {self.input.crop!r}: leave "
                "--peers out, or use a recipe with --crop random-resized"
            )
        job = Job(
            data=Path(self.dataset.root),
            split=self.input.train_split,
            crop=crop,
            batch_size=self.input.batch_size,
            device=self.device,
            threads=self.plan.threads,
            scratch=Path(),
        )
        stage = Isolated(name, job)
        stage.title = f"peer: {stage.title}"
        try:
            stage.make()
        except BaseException:  # Ctrl-C, too: it takes seconds
            stage.close()
            raise
        return stage


def ceiling(name: str, found: dict[str, Series], default: str | None, device: torch.device) -> Series | None:
    """The stage that bounds this one: decoding is fed by reading, loaders by decoding, training by loader and step."""
    if name == "real":
        above = [found[other] for other in (default, "synthetic") if other in found]
        return min(above, key=lambda one: one.rate, default=None)
    if name in ("read", "copy", "synthetic"):
        return None
    if name == "decode" or decodes_on_gpu(name, str(device)):
        return found.get("read")
    return found.get("decode")


def _figures(one: Series, above: Series | None) -> dict[str, Any]:
    def rounded(values: list[float], digits: int) -> list[float]:
        return [round(value, digits) for value in values]

    steps = np.concatenate(one.steps_ms)
    return {
        "name": one.name,
        "title": one.title,
        "images_per_s": rounded(one.images_per_s, 1),
        "images_per_s_interval": _interval(median_interval(one.images_per_s)),
        "mb_per_s": rounded(one.mb_per_s, 4),  # a slow training reads little
        "cpu_s_per_1000": rounded(one.cpu_s, 3),
        "step_ms": rounded(one.step_ms, 2),
        "step_ms_percentiles": {f"p{p}": round(float(np.percentile(steps, p)), 2) for p in (50, 95, 99)}
        | {"steps": len(steps)},
        "ceiling": above.name if above is not None else None,
        "share_of_ceiling": None
        if above is None
        else _interval(ratio_interval(one.images_per_s, above.images_per_s)),
    }


def _interval(one: Interval) -> dict[str, float]:
    return {name: round(value, 4) for name, value in dataclasses.asdict(one).items()}


def _ratios(found: dict[str, Series], default: str | None) -> dict[str, Any]:
    pairs: dict[str, tuple[str | None, str]] = {
        "loader / decode ceiling": (default, "decode"),
        "loader / plain DALI": (default, "dali"),
        "loader / torchvision": (default, "torchvision"),
        "loader / training on synthetic": (default, "synthetic"),
        "feed ratio (real / synthetic)": ("real", "synthetic"),
    }
    return ratio_figures(
        {
            name: (found[above].images_per_s, found[below].images_per_s)
            for name, (above, below) in pairs.items()
            if above in found and below in found
        }
    )


def _of_gpu(stages: list[Stage], device: torch.device) -> list[Stage]:
    """Stages whose use of the GPU is of interest."""
    first = next((stage for stage in stages if isinstance(stage, Load)), None)
    if device.type != "cuda":
        return []
    return [stage for stage in stages if stage is first or isinstance(stage, (Synthetic, Real))]


def _peak_gib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
