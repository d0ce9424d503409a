"""`python -m bench doctor`: take a training apart, say what limits it, and try what may help.

The rule is in `bench.bottleneck`, what may help in `bench.remedies`. Suggestions are measured against the training as
it is, interleaved; one helps if the interval of its gain lies above what is worth a change.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.bottleneck import Costs, judge
from bench.doctor_record import figures, medians, milliseconds, rounded, suggestion
from bench.intervals import ratio_interval
from bench.long_epochs import in_passes, with_long_epochs
from bench.measure import Series, Stage, measure
from bench.page_cache import Eviction, available_bytes, can_evict, evict, state
from bench.parts import Copy, HostToDevice, Prepare, Train, Windows, device_copy
from bench.prescription import summary
from bench.remedies import Change, Remedies, Setup
from bench.samples import Sample, is_remote, take_sample
from bench.stages import Synthetic
from bench.storage import Bytes, Fetch
from loader import Compose, Loader
from loader.cache import ShardCache, default_cache
from loader.resolve import resolve_backend, usable_cores
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.build import length_of, make_step
from train.config import Config, to_dict
from train.distributed import World
from train.environment import environment
from train.inputs import num_samples
from train.step import TrainStep
from train.synthetic import synthetic_batch

_SAMPLES = 256  # images kept in memory, at least
_HOLDS = 1.25  # times a split's size: a cache that holds it, as loader.remote sees it


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        config: the training; `data` is set.
        repeats: of the whole, interleaved.
        seconds: per stage and repeat.
        page_cache: "hot", "cold" (the split's pages are dropped before each epoch), or "auto": cold where the split
            is larger than what is free of the memory.
        verify: measure the suggestions.
        compilation: try torch.compile on a CPU, too.
    """

    config: Config
    repeats: int
    seconds: float
    page_cache: str = "auto"
    verify: bool = True
    compilation: bool = False


def diagnose(plan: Plan, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and return the record: figures per stage, verdict, suggestions with their gains; JSON-able.

    Raises:
        FeedlineError: the dataset, the model or a stage cannot be used.
    """
    if plan.config.data is None:
        raise FeedlineError("data is missing; give --data DATASET")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedline-doctor-")))
        clinic = _Clinic(plan, device, scratch)
        stages, train = clinic.stages()
        with ExitStack() as opened:
            for stage in stages:
                opened.callback(stage.close)
            series = measure(stages, plan.repeats, plan.seconds, say, clinic.prepare)
        costs = clinic.costs({one.name: one for one in series}, train)
        verdict, middle = judge(costs), medians(costs)
        say(f"{verdict.bottleneck} limits; looking for what helps")
        changes = clinic.remedies().against(verdict, middle)
        tried = clinic.verify([c for c in changes if c.setup is not None], say) if plan.verify else {}
    record = {
        "benchmark": "doctor",
        "environment": environment(device),
        "settings": clinic.settings(),
        "stages": [figures(one) for one in series],
        "waits": {
            "wait_share": round(middle.wait_share, 4),
            "read_wait_share": round(middle.read_wait_share, 4),
        },
        "counters": train.loader.counters.as_dict(),
        "costs_per_image": [rounded(asdict(one)) for one in costs],
        "resources_ms_per_image": milliseconds(middle.times()),
        "parts_ms_per_image": milliseconds(middle.parts()),
        "free_cores": round(middle.free_cores, 2),
        "verdict": rounded(asdict(verdict)),
        "suggestions": [suggestion(change, tried.get(change.how)) for change in changes],
    }
    return record | {"summary": " ".join(summary(record))}


class _Clinic:
    """Makes the stages of a plan."""

    def __init__(self, plan: Plan, device: torch.device, scratch: Path) -> None:
        self.plan, self.device, self._scratch = plan, device, scratch
        self.setup = Setup(config=plan.config)
        self.input = plan.config.input
        self.dataset = Dataset.open(str(plan.config.data))
        num_samples(self.input, self.dataset)  # raises where it is too small, which repeating would hide
        self.split = self.dataset.split(self.input.train_split)
        self.remote = is_remote(self.split)
        self.backend = resolve_backend(self.input.loader_backend, device)
        total = sum(self.split.shard_bytes)
        big = total > available_bytes() and can_evict()
        cold = plan.page_cache == "cold" or (plan.page_cache == "auto" and big)
        self._eviction = Eviction(self.split) if cold and not self.remote else None
        self.cache_bytes = self._cache_bytes() if self.remote else None
        # Of a training's epochs, the share in which a sample comes from the store.
        fits = self.cache_bytes is None or self.cache_bytes >= _HOLDS * total
        self.fetched_share = 1 / self._epochs() if self.remote and fits else 1.0
        self.copy: Copy | None = device_copy(device)
        self._sample: Sample | None = None
        self._steps: dict[str, TrainStep] = {}

    def prepare(self) -> None:
        """Before every measurement: other stages have read the split since; where it is to be cold, it is evicted."""
        if self._eviction is not None:
            self._eviction()

    def _begin(self) -> None:
        """Before every pass of the data: the one before has read the split."""
        if self._eviction is not None:
            evict(self.split)

    def _epochs(self) -> float:
        """Epochs that the training lasts, at least one."""
        length = length_of(self.plan.config, self.dataset)
        return max(1.0, length.steps / length.steps_per_epoch)

    def _cache_bytes(self) -> int | None:
        if self.input.cache_gb is not None:
            return int(self.input.cache_gb * 1e9)
        return default_cache(self.input.cache).limit_bytes

    @property
    def sample(self) -> Sample:
        """Images in memory, taken once."""
        if self._sample is None:
            count = max(_SAMPLES, 2 * self.input.batch_size)
            self._sample = take_sample(self.dataset, self.split, count, self._scratch)
        return self._sample

    def stages(self) -> tuple[list[Stage], Train]:
        """The parts of a training, and the whole of it."""
        images, threads = self.input, self.setup.threads
        transform = images.train_transform()
        made: list[Stage] = [
            Fetch(self.dataset, self.split)
            if self.remote
            else Bytes(self.split, images.order(), images.batch_size, threads, self._begin),
            Windows(self.sample, transform, images.batch_size, threads),
        ]
        kinds = [("prepare", "decode, resize, augment", transform)]
        if isinstance(transform, Compose):
            kinds.insert(0, ("crop", "decode and resize", transform.crop))
        for name, title, kind in kinds:
            made.append(
                Prepare(
                    name, title, self.sample, kind, batch_size=images.batch_size, threads=threads,
                    backend=self.backend, device=self.device,
                )
            )  # fmt: skip
        if self.copy is not None:
            made.append(HostToDevice(self._payload(), images.batch_size, self.copy, self.device))
        step = self._step(self.setup)
        batch = synthetic_batch(images.batch_size, images.size, len(self.dataset.classes), self.device)
        train = self.train("real", "training, real data", self.setup)
        return [*made, Synthetic(step, batch), train], train

    def _payload(self) -> torch.Tensor:
        """What one batch sends to the device: its pixels, or the encoded bytes if it decodes."""
        images, pinned = self.input, self.device.type == "cuda"
        size = images.batch_size * 3 * images.size**2
        if self.backend == "dali":
            size = int(images.batch_size * self.sample.mean_bytes)
        return torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)

    def train(self, name: str, title: str, setup: Setup) -> Train:
        """Training on real data with a setup; on all alike in long epochs, on a few images packed anew, too."""
        images = setup.config.input
        # A store's shards are held until their last use in an epoch: repeated, all at a time. So that split stays as
        # it is, and what is measured beside it has as many images an epoch.
        most = len(self.split) if self.remote else None
        dataset = with_long_epochs(
            Dataset.open(str(setup.config.data)), images.train_split, images.batch_size, most
        )
        loader = Loader(
            dataset, images.train_split, images.train_transform(), batch_size=images.batch_size,
            shuffle=in_passes(images.order(), dataset.times), drop_last=True, device=self.device,
            backend=images.loader_backend, threads=images.loader_threads, prefetch=setup.prefetch,
            cache=self._cache(dataset, name),
        )  # fmt: skip
        # On a GPU the loader copies, beside the step before.
        copy = self.copy if self.device.type == "cpu" else None
        # Images packed anew do not read the split.
        repeated = dataset.times > 1 and dataset.root == self.dataset.root
        every = len(self.split) // images.batch_size if repeated else None
        return Train(name, title, self._step(setup), loader, copy, self._begin, every)

    def _cache(self, dataset: Dataset, name: str) -> ShardCache | None:
        """A cache as large as the training's, and empty."""
        if "://" not in str(dataset.root):
            return None
        return ShardCache(self._scratch / f"cache-{name}", self.cache_bytes)

    def _step(self, setup: Setup) -> TrainStep:
        key = repr((setup.config.step, setup.config.model))
        if key not in self._steps:
            step = make_step(setup.config, len(self.dataset.classes), World(device=self.device))
            step.net.train()
            self._steps[key] = step
        return self._steps[key]

    def costs(self, found: dict[str, Series], train: Train) -> list[Costs]:
        """Costs per repeat."""
        return [self._costs(found, train, i) for i in range(self.plan.repeats)]

    def _costs(self, found: dict[str, Series], train: Train, i: int) -> Costs:
        prepare, crop = found["prepare"], found.get("crop", found["prepare"])
        augment_core_s = max(0.0, prepare.cpu_s[i] - crop.cpu_s[i]) / 1000
        storage, copy = found["storage"], found.get("copy")
        wait_share, read_wait_share = train.waits[1 + i]  # after the warm-up
        return Costs(
            storage_s=self.fetched_share / storage.images_per_s[i],
            copy_s=1 / copy.images_per_s[i] if copy is not None else 0.0,
            prepare_s=1 / prepare.images_per_s[i],
            model_s=1 / found["synthetic"].images_per_s[i],
            read_core_s=self.fetched_share * storage.cpu_s[i] / 1000,
            decode_core_s=prepare.cpu_s[i] / 1000 - augment_core_s,
            augment_core_s=augment_core_s,
            model_core_s=found["synthetic"].cpu_s[i] / 1000,
            augment_share=max(0.0, 1 - prepare.images_per_s[i] / crop.images_per_s[i]),
            cores=usable_cores(),
            shared=self.device.type == "cpu",
            real_s=1 / found["real"].images_per_s[i],
            wait_share=wait_share,
            read_wait_share=read_wait_share,
        )

    def remedies(self) -> Remedies:
        """What may be tried."""
        return Remedies(
            self.setup, self.sample, self._scratch, backend=self.backend, gpu=self.device.type == "cuda",
            compilation=self.plan.compilation,
        )  # fmt: skip

    def verify(self, changes: Sequence[Change], say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
        """Measure training with each change beside training as it is; gains by `Change.how`."""
        if not changes:
            return {}
        with ExitStack() as stack:
            stages = [self.train("as-is", "as it is", self.setup)]
            stack.callback(stages[0].close)
            for number, change in enumerate(changes):
                assert change.setup is not None
                stages.append(self.train(f"change-{number}", change.how, change.setup))
                stack.callback(stages[-1].close)
            base, *others = measure(stages, self.plan.repeats, self.plan.seconds, say, self.prepare)
        return {
            change.how: {
                "images_per_s": [round(rate, 2) for rate in one.images_per_s],
                "gain": asdict(ratio_interval(one.images_per_s, base.images_per_s)),
            }
            for change, one in zip(changes, others, strict=True)
        }

    def settings(self) -> dict[str, Any]:
        """What was measured."""
        page_cache = state(sum(self.split.shard_bytes))
        if self._eviction is not None:
            page_cache = self._eviction.state
        return {
            "dataset": str(self.dataset.root),
            "samples": len(self.split),
            "device": str(self.device),
            "backend": self.backend,
            "threads": self.setup.threads,
            "torch_threads": torch.get_num_threads(),
            "repeats": self.plan.repeats,
            "seconds": self.plan.seconds,
            "page_cache": "of no account (store)" if self.remote else page_cache,
            "fetched_share": self.fetched_share if self.remote else None,
            "config": to_dict(self.plan.config),
        }
