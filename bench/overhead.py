"""`python -m bench overhead`: our training step against a plain PyTorch loop, on the same synthetic batch.

The reference is what one writes by hand: normalised float images, `autocast`, cross-entropy, `backward`, `step`, and
nothing else. Ours is what `Trainer` does in every step: learning rate, masks, losses kept on the device, time marks.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from bench.environment import environment
from bench.measure import Series, Stage, measure, ratio
from bench.stages import Real, Synthetic
from loader import Batch
from shard.dataset import Dataset
from train.build import make_step
from train.config import Config, to_dict
from train.distributed import World
from train.engine import WARMUP_STEPS
from train.inputs import train_loader
from train.loss_window import LossWindow, StepRecord
from train.meter import Meter
from train.model import Normalized
from train.optim import make_optimizer
from train.step import TrainStep
from train.synthetic import synthetic_batch

_LR = 1e-3  # small enough that a long measurement does not diverge
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Reference:
    """A plain loop's step."""

    name, title, lead_in = "reference", "plain PyTorch loop", 1

    def __init__(self, net: Normalized, config: Config, batch: Batch, *, compiled: bool) -> None:
        self.net, self._optimizer = net, make_optimizer(net.model, config.optim)
        self._model = torch.compile(net.model, dynamic=False) if compiled else net.model
        pixels = batch.images.permute(0, 3, 1, 2).float()
        self._images = torch.addcmul(net.shift, pixels, net.scale)  # once: a plain loop gets them like this
        self._labels, self._smoothing = batch.labels, config.loss.label_smoothing
        self._device, self._dtype = batch.images.device, _DTYPES[config.step.precision]
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._dtype == torch.float16)
        for group in self._optimizer.param_groups:
            group["lr"] = _LR

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        self.train(self._images, self._labels)
        return len(self._labels), 0

    def train(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Train on normalised images, float [B, 3, H, W], with labels [B]."""
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = self._model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self._smoothing)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def close(self) -> None:
        """Nothing to free."""


class Ours(Synthetic):
    """Everything that `Trainer.train_step` does between two lines of metrics, and their look at the losses."""

    name, title, lead_in = "ours", "train's step", 1

    def __init__(self, train_step: TrainStep, batch: Batch, log_every: int) -> None:
        super().__init__(train_step, batch)
        world = train_step.world
        self._losses, self._meter = LossWindow(log_every, world), Meter(world.device, WARMUP_STEPS)
        self._log_every, self._steps = log_every, itertools.count(1)

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        step, batch, number = self._train_step, self._batch, next(self._steps)
        self._meter.mark("data")
        loss = torch.zeros((), device=batch.images.device)
        loss += step.forward_backward(batch.images, batch.labels, batch.valid)
        self._meter.mark("forward_backward")
        step.update(_LR)
        self._losses.add(loss, StepRecord(number, _LR, [batch.ids]))
        self._meter.mark("optimiser")
        self._meter.count()
        if number % self._log_every == 0:
            self._losses.look()
            self._meter.stop()
        return batch.num_valid, 0


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
    reference = Reference(copy.deepcopy(step.net), config, batch, compiled=compiled)
    with ExitStack() as stack:
        stages: list[Stage] = [reference, Ours(step, batch, config.log_every)]
        if dataset is not None:
            loader = stack.enter_context(train_loader(config.input, dataset, config.seed, 1, world))
            stages.append(Real(step, loader))
        series = measure(stages, repeats, seconds, say)
    found = {one.name: one for one in series}
    cpu = [b / a for a, b in zip(found["ours"].cpu_s, found["reference"].cpu_s, strict=True)]
    ratios = {
        "ours / reference": ratio(found["ours"], found["reference"]),
        # Wall-clock time on a machine that others use as well says little; this stays.
        "ours / reference, per CPU second": median(cpu),
    }
    if "real" in found:
        ratios["feed ratio (real / synthetic)"] = ratio(found["real"], found["ours"])
    return {
        "benchmark": "overhead",
        "environment": environment(device),
        "settings": {
            "device": str(device), "threads": torch.get_num_threads(), "repeats": repeats, "seconds": seconds,
            "compiled": compiled, "config": to_dict(config),
        },
        "stages": [_figures(one) for one in series],
        "ratios": {name: round(value, 4) for name, value in ratios.items()},
    }  # fmt: skip


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
    lines += ["", *(f"{name}: {value:.3f}" for name, value in record["ratios"].items())]
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
