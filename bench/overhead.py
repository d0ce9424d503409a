"""`python -m bench overhead`: our training step against a plain PyTorch loop, on the same synthetic batch.

The reference is what one writes by hand: normalised float images, timm's `Mixup` and loss where the recipe has them,
`autocast`, `backward`, `step`, and nothing else. Ours is what `Trainer` does in every step: learning rate, mixing,
masks, losses kept on the device, time marks.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

import timm.data
import timm.loss
import torch
from torch.nn import functional as F

from bench.intervals import ratio_figures
from bench.long_epochs import with_long_epochs
from bench.measure import Series, Stage, measure
from bench.report import ratio_lines
from bench.samples import is_remote
from bench.stages import LR, endless_batches, fed_lead_in, synchronize
from loader import Batch, Loader
from shard.dataset import Dataset
from train.build import make_step
from train.config import Config, to_dict
from train.distributed import World
from train.engine import WARMUP_STEPS
from train.environment import environment
from train.inputs import InputConfig, num_samples, train_loader
from train.loss_window import LossWindow, StepRecord
from train.meter import Meter
from train.mix import Mixing
from train.model import Normalized
from train.numerics import autocast_dtype
from train.optim import make_optimizer
from train.schedule import Length
from train.step import TrainStep
from train.synthetic import synthetic_batch

_ENDLESS = 10**9  # steps


class Reference:
    """A plain loop's step."""

    name, title, lead_in = "reference", "plain PyTorch loop", 1

    def __init__(
        self, net: Normalized, config: Config, batch: Batch, *, compiled: bool, classes: int = 10
    ) -> None:
        self.net, self._optimizer = net, make_optimizer(net.model, config.optim)
        self._model = torch.compile(net.model, dynamic=False) if compiled else net.model
        pixels = batch.images.permute(0, 3, 1, 2).float()
        self._images = torch.addcmul(net.shift, pixels, net.scale)  # once: a plain loop gets them like this
        self._labels, self._device = batch.labels, batch.images.device
        self._mixup, self._loss = _mixup(config, classes), _loss(config)
        self._dtype = autocast_dtype(config.step.precision)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._dtype == torch.float16)
        for group in self._optimizer.param_groups:
            group["lr"] = LR

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        images, targets = self._images, self._labels
        if self._mixup is not None:
            images, targets = self._mixup(images.clone(), targets)  # it mixes in place
        self.train(images, targets)
        return len(self._labels), 0

    def train(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """Train on normalised images, float [B, 3, H, W], with labels [B] or soft targets [B, classes]."""
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = self._model(images)
        loss = self._loss(logits.float(), targets)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def synchronize(self) -> None:
        """Wait for the GPU."""
        synchronize(self._device)

    def close(self) -> None:
        """Nothing to free."""


def _mixup(config: Config, classes: int) -> Any:
    """Timm's mixing, with the recipe's settings; None where nothing mixes."""
    mix = config.mix
    if not mix.enabled:
        return None
    return timm.data.Mixup(
        mixup_alpha=mix.mixup,
        cutmix_alpha=mix.cutmix,
        prob=mix.mix_prob,
        switch_prob=mix.mix_switch,
        mode=mix.mix_mode,
        label_smoothing=config.loss.label_smoothing,
        num_classes=classes,
    )


def _loss(config: Config) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The recipe's loss as one writes it by hand; timm's `Mixup` has smoothed the targets that it mixes."""
    loss = config.loss
    if loss.loss == "bce":
        bce: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = timm.loss.BinaryCrossEntropy(
            loss.label_smoothing, loss.bce_threshold, sum_classes=loss.bce_sum
        )
        return bce
    smoothing = 0.0 if config.mix.enabled else loss.label_smoothing
    return lambda logits, targets: F.cross_entropy(logits, targets, label_smoothing=smoothing)


class Ours:
    """Everything that `Trainer.train_step` does between two lines of metrics, and their look at the losses.

    Args:
        train_step: the step.
        batches: what it trains on, without end.
        config: of the training.
        loader: where the batches come from; None: they are synthetic.
    """

    def __init__(
        self, train_step: TrainStep, batches: Iterator[Batch], config: Config, loader: Loader | None = None
    ) -> None:
        self.name, self.title = (
            ("ours", "train's step") if loader is None else ("real", "training, real data")
        )
        world = train_step.world
        self.lead_in = 1 if loader is None else fed_lead_in(world.device)
        self._train_step, self._batches, self._loader = train_step, batches, loader
        # All durations are of a run without end: mixing, which may end earlier, is on.
        self._mixing = Mixing(replace(config.mix, mix_until="100%"), config.seed, Length(1, 1, _ENDLESS))
        self._losses, self._meter = LossWindow(config.log_every, world), Meter(world.device, WARMUP_STEPS)
        self._log_every, self._steps = config.log_every, itertools.count(1)

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        step, batch, number = self._train_step, next(self._batches), next(self._steps)
        self._meter.mark("data")
        loss = torch.zeros((), device=batch.images.device)
        mix = self._mixing(0, number, batch.ids, batch.images)
        loss += step.forward_backward(batch.images, batch.labels, batch.valid, mix=mix)
        self._meter.mark("forward_backward")
        step.update(LR)
        self._losses.add(loss, StepRecord(number, LR, [batch.ids]))
        self._meter.mark("optimiser")
        self._meter.count()
        if number % self._log_every == 0:
            self._losses.look()
            self._meter.stop()
        return batch.num_valid, 0

    def synchronize(self) -> None:
        """Wait for the GPU."""
        synchronize(self._train_step.world.device)

    def close(self) -> None:
        """See `Stage.close`."""
        if self._loader is not None:
            self._loader.close()


def overhead(
    config: Config, device: torch.device, repeats: int, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, and return the record.

    Args:
        config: model, precision, batch size; with `data`, training on real data is measured too.
        device: where.
        repeats: of the whole, interleaved.
        seconds: per contestant and repeat.
        say: gets a line of progress.

    Raises:
        FeedlineError: the dataset cannot be read.
    """
    config = replace(config, step=replace(config.step, accumulate=1))
    dataset = Dataset.open(config.data) if config.data is not None else None
    classes = len(dataset.classes) if dataset is not None else 1000
    world = World(device=device)
    batch = synthetic_batch(config.input.batch_size, config.input.size, classes, device)
    step = make_step(config, classes, world)
    step.net.train()
    compiled = device.type == "cuda" if config.step.compile is None else config.step.compile
    reference = Reference(copy.deepcopy(step.net), config, batch, compiled=compiled, classes=classes)
    with ExitStack() as stack:
        stages: list[Stage] = [reference, Ours(step, itertools.repeat(batch), config)]
        if dataset is not None:
            loader = stack.enter_context(
                train_loader(config.input, _repeated(dataset, config.input), config.seed, 1, world)
            )
            stages.append(Ours(step, endless_batches(loader), config, loader))
        series = measure(stages, repeats, seconds, say)
    found = {one.name: one for one in series}
    ours, plain, real = found["ours"], found["reference"], found.get("real")
    ratios = {
        "ours / reference": (ours.images_per_s, plain.images_per_s),
        # Wall-clock time on a machine that others use as well says little; this stays.
        "ours / reference, per CPU second": (plain.cpu_s, ours.cpu_s),
    }
    if real is not None:
        ratios["feed ratio (real / synthetic)"] = (real.images_per_s, ours.images_per_s)
    return {
        "benchmark": "overhead",
        "environment": environment(device),
        "settings": {
            "device": str(device), "threads": torch.get_num_threads(), "repeats": repeats, "seconds": seconds,
            "compiled": compiled, "config": to_dict(config),
        },
        "stages": [_figures(one) for one in series],
        **ratio_figures(ratios),
    }  # fmt: skip


def _repeated(dataset: Dataset, images: InputConfig) -> Dataset:
    """A small split with long epochs, as `bench throughput` takes it: both give the feed ratio.

    A store's is not repeated: its shards would be held for a whole epoch.
    """
    num_samples(images, dataset)  # raises where it is too small, which repeating would hide
    if is_remote(dataset.split(images.train_split)):
        return dataset
    return with_long_epochs(dataset, images.train_split, images.batch_size)


def table(record: dict[str, Any]) -> str:
    """The record as text."""
    settings, config = record["settings"], record["settings"]["config"]
    lines = [
        f"{config['model']['arch']}, {config['input']['size']} px, batch {config['input']['batch_size']}, "
        f"{config['step']['precision']}, {'compiled' if settings['compiled'] else 'eager'}, {settings['device']}",
        "",
        f"{'':26}{'images/s':>10}  {'min – max':>17}  {'ms / step':>10}",
    ]
    for stage in record["stages"]:
        rates = stage["images_per_s"]
        lines.append(
            f"{stage['title']:26}{median(rates):>10,.1f}  {min(rates):>7,.1f} – {max(rates):>7,.1f}  "
            f"{median(stage['step_ms']):>10.2f}"
        )
    lines += ["", *ratio_lines(record)]
    if "feed ratio (real / synthetic)" in record["ratios"] and settings["device"] == "cpu":
        lines.append(
            "on a CPU decoding takes cores from training: the feed ratio nears 1 only where the model is heavy "
            "enough for data to be no limit"
        )
    return "\n".join(lines)


def _figures(one: Series) -> dict[str, Any]:
    return {
        "name": one.name,
        "title": one.title,
        "images_per_s": [round(value, 2) for value in one.images_per_s],
        "cpu_s_per_1000": [round(value, 4) for value in one.cpu_s],
        "step_ms": [round(value, 3) for value in one.step_ms],
    }
