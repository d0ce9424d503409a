"""`--check`, `--dry-run`, `--find-batch-size`: what a training would take, without starting it. Nothing is written."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from loader import Batch
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.build import image_sizes, length_of, make_step
from train.class_weights import class_weights
from train.config import Config
from train.distributed import World
from train.evaluate import augmented
from train.flops import forward_flops
from train.freeze import frozen_parameters
from train.inputs import eval_loader, eval_split, train_loader
from train.memory import fits_in_budget, fits_on_gpu, largest, measure_memory
from train.mix import Mixing
from train.model import check_sizes, make_model
from train.norms import check_norms, lone_norms
from train.optim import make_optimizer
from train.pretrained import FROM_TIMM
from train.resolution import size_at
from train.schedule import Length
from train.step import TrainStep
from train.synthetic import SyntheticLoader
from train.telemetry import clock, peak_memory_bytes

_WARMUP, _MEASURED = 3, 5  # steps
# A tenth of a GPU's memory: DALI's is none of torch's, which would not give it back either.
_LOADERS_PART = 10
_SIZES = 4  # most image sizes that are measured


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes steps of one run alike: the side of the images, pixels, and whether parts are frozen."""

    side: int
    frozen: bool


def check(config: Config, dataset: Dataset, world: World) -> str:
    """Look for mistakes in flags, splits, durations and model, on the CPU and without training.

    Raises:
        FeedlineError: the first one.
    """
    length = length_of(config, dataset)
    eval_split(config.input, dataset)
    step_kinds(config, length)
    Mixing(config.mix, config.seed, length)
    pretrained = None if config.model.pretrained == FROM_TIMM else config.model.pretrained
    model = replace(config.model, pretrained=pretrained)  # nothing is downloaded
    cpu = torch.device("cpu")
    class_weights(config.loss.class_weights, dataset, config.input.train_split, cpu)
    net = make_model(model, len(dataset.classes), cpu, classes=dataset.classes)
    check_sizes(net, model.arch, image_sizes(config))
    make_optimizer(net.model, config.optim)
    frozen = frozen_parameters(net.model, config.freeze)
    if not config.step.sync_bn or world.size == 1:
        check_norms(net, config, length, world, frozen)
    return f"no mistake found: {model.arch}, {len(dataset.classes)} classes, {length.steps} steps"


def step_kinds(config: Config, length: Length) -> Counter[Kind]:
    """How many steps of each kind the run has, in the order in which they come."""
    grow = size_at(config.resolution, config.input.size, length)
    thaw = length.of(config.freeze.freeze_for, "freeze_for") if config.freeze.freeze else 0

    def kind(step: int) -> Kind:
        epoch, within = divmod(step, length.steps_per_epoch)
        side = config.input.size if grow is None else grow(epoch, within * length.batch_size)
        return Kind(side, step < thaw)

    return Counter(map(kind, range(length.steps)))


def dry_run(config: Config, dataset: Dataset, world: World) -> dict[str, Any]:
    """Do a few steps of every kind that the training has, with its data, and return what the whole would take.

    Returns:
        parameters, classes, samples, flops_per_image (forward), steps_per_epoch, steps, epochs, batch_size, ranks,
        micro_batch, sizes (of training images, pixels), memory_bytes (of one rank), memory_measured (on a GPU; else
        estimated), step_s (mean over the run), synthetic, eval_s (per evaluation, averaged weights and both flips
        included; 0 with synthetic data), expected_s.
    """
    length = length_of(config, dataset)
    kinds = step_kinds(config, length)
    sides = sorted({kind.side for kind in kinds})
    step = make_step(config, len(dataset.classes), world, dataset=dataset, sizes=len(sides))
    net = step.net
    step.train()
    took_s, batch = _time_kinds(config, dataset, step, kinds, length)
    train_s = sum(took_s[kind] * count for kind, count in kinds.items())
    micro = len(batch.images)
    measured = world.device.type == "cuda"
    memory = peak_memory_bytes(world.device) if measured else measure_memory(step, batch).total
    eval_s = 0.0 if config.synthetic else _time_evaluation(config, dataset, step, micro)
    return {
        "arch": config.model.arch,
        "parameters": sum(p.numel() for p in net.parameters()),
        "classes": len(dataset.classes),
        "samples": len(dataset.split(config.input.train_split)),
        "flops_per_image": forward_flops(net, config.input.size, world.device),
        "steps_per_epoch": length.steps_per_epoch,
        "steps": length.steps,
        "epochs": length.epochs,
        "batch_size": config.input.batch_size,
        "ranks": world.size,
        "micro_batch": micro,
        "sizes": sides,
        "memory_bytes": memory,
        "memory_measured": measured,
        "step_s": train_s / length.steps,
        "synthetic": config.synthetic,
        "eval_s": eval_s,
        "expected_s": train_s + length.epochs * eval_s,
    }


def plan_text(found: dict[str, Any]) -> str:
    """What `dry_run` found, for people."""
    speed = found["batch_size"] / found["step_s"]
    how = "measured" if found["memory_measured"] else "estimated: weights, gradients, optimiser, activations"
    data = "synthetic" if found["synthetic"] else "real"
    sizes = ", ".join(map(str, found["sizes"]))
    rows = {
        "model": f"{found['arch']}, {found['parameters'] / 1e6:.2f} M parameters, {found['classes']} classes",
        "forward pass": f"{found['flops_per_image'] / 1e9:.3f} GFLOPs per image (training takes three times that)",
        "steps": f"{found['steps']} = {found['epochs']} epochs × {found['steps_per_epoch']}, of {found['samples']}",
        "batch": f"{found['batch_size']}, as {found['micro_batch']} per micro-batch on {found['ranks']} rank(s), "
        f"images of {sizes} px",
        "memory": f"{found['memory_bytes'] / 2**30:.2f} GiB per rank ({how})",
        "speed": f"{speed:,.0f} images/s with {data} data, mean over the run; {_MEASURED} steps of each kind, after "
        f"{_WARMUP} to warm up",
        "evaluation": "none with synthetic data" if found["synthetic"] else f"{found['eval_s']:.1f} s each",
        "expected time": clock(found["expected_s"]),
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items()) + "\nnothing was written"


def find_batch_size(config: Config, dataset: Dataset, world: World, memory_gib: float | None) -> str:
    """Find the largest micro-batch that fits in memory, and say which batch sizes that allows.

    Raises:
        FeedlineError: several processes, a CPU without a budget, or not even one sample fits.
    """
    if world.size > 1:
        raise FeedlineError("--find-batch-size needs one process: all ranks are alike; leave torchrun out")
    on_gpu = world.device.type == "cuda"
    if not on_gpu and memory_gib is None:
        raise FeedlineError(
            "--find-batch-size: on a CPU memory is not the limit, and too much of it gets the process killed; "
            "give a budget, --memory-gib 8, or choose the batch size by --dry-run's images/s"
        )
    # Every size would be compiled anew, and compiled code takes no more memory.
    eager = dataclasses.replace(config, step=dataclasses.replace(config.step, compile=False, accumulate=1))
    classes, side = len(dataset.classes), config.input.size
    step = make_step(eager, classes, world)
    step.train()
    if not all(kind.frozen for kind in step_kinds(config, length_of(config, dataset))):
        step.set_frozen(False)  # the whole model learns at some time, and that has to fit
    if on_gpu:
        limit_memory(world.device, memory_gib)
        fits = fits_on_gpu(step, side, classes)
    else:
        assert memory_gib is not None
        fits = fits_in_budget(step, side, classes, int(memory_gib * 2**30))
    least = 2 if lone_norms(step.net, side) else 1
    limit = len(dataset.split(config.input.train_split))
    if limit < least:
        raise FeedlineError(
            f"--find-batch-size: split {config.input.train_split!r} has {limit} sample, and this model takes batches "
            f"of {least} or more; use a larger split"
        )
    power, most = largest(fits, limit=limit, least=least)
    if power == 0:
        raise FeedlineError(f"--find-batch-size: not even a batch of {least} at {side} px fits in memory")
    return batch_size_text(config, power, most)


def limit_memory(device: torch.device, memory_gib: float | None) -> None:
    """Let torch have so much of a GPU's memory; None: all but what a loader that decodes there takes beside it."""
    total = torch.cuda.get_device_properties(device).total_memory
    limit = total - total // _LOADERS_PART if memory_gib is None else memory_gib * 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)


def batch_size_text(config: Config, power: int, most: int) -> str:
    """Say what a largest micro-batch means for the flags."""
    wanted = config.input.batch_size
    accumulate = next(a for a in range(1, wanted + 1) if wanted % a == 0 and wanted // a <= most)
    keep = "" if accumulate == 1 else f" --accumulate {accumulate}"
    return (
        f"largest micro-batch per rank at {config.input.size} px: {power} (power of two), {most} (multiple of 8)\n"
        f"this recipe's global batch on one rank:  --batch-size {wanted}{keep}\n"
        f"as many as fit on each of N ranks:       --batch-size {power} × N (the learning rate is for the recipe's "
        f"{wanted})\nnothing was written"
    )


def _time_kinds(
    config: Config, dataset: Dataset, step: TrainStep, kinds: Iterable[Kind], length: Length
) -> tuple[dict[Kind, float], Batch]:
    """Seconds per step of every kind, and a batch of the last; between `_SIZES` sizes they are interpolated."""
    took_s: dict[Kind, float] = {}
    for frozen in sorted({kind.frozen for kind in kinds}, reverse=True):
        alike = sorted(kind.side for kind in kinds if kind.frozen == frozen)
        at = sorted({alike[round(i)] for i in np.linspace(0, len(alike) - 1, min(_SIZES, len(alike)))})
        found = []
        for side in at:
            seconds, batch = _time_steps(config, dataset, step, Kind(side, frozen), length)
            found.append(seconds)
        # The pixels, and with them the time, grow with the square.
        between = np.interp(np.square(alike), np.square(at), found).tolist()
        took_s |= {Kind(side, frozen): seconds for side, seconds in zip(alike, between, strict=True)}
    return took_s, batch


def _time_steps(
    config: Config, dataset: Dataset, step: TrainStep, kind: Kind, length: Length
) -> tuple[float, Batch]:
    """Seconds per step with the run's data, and the last batch; weights stay as they are."""
    accumulate, mixing, began = config.step.accumulate, Mixing(config.mix, config.seed, length), 0.0
    loader_of = SyntheticLoader if config.synthetic else train_loader
    step.set_frozen(kind.frozen)
    with loader_of(
        config.input, dataset, config.seed, accumulate, step.world, lambda *at: kind.side
    ) as batches:
        stream = _endless(batches)
        for number in range(_WARMUP + _MEASURED):
            if number == _WARMUP:
                _synchronize(step.world.device)
                began = time.perf_counter()
            for part in range(accumulate):
                batch = next(stream)
                mix = mixing(0, number, batch.ids, batch.images)
                last = part == accumulate - 1
                step.forward_backward(batch.images, batch.labels, batch.valid, last=last, mix=mix)
            step.update(0.0)
        _synchronize(step.world.device)
        return (time.perf_counter() - began) / _MEASURED, batch


def _time_evaluation(config: Config, dataset: Dataset, step: TrainStep, micro: int) -> float:
    """Seconds that an evaluation takes, of the weights and of their average if there is one, from a batch of each."""
    step.net.eval()
    predicts = [step.predict] if step.ema is None else [step.predict, step.predict_averaged]
    seconds = 0.0
    with eval_loader(config.input, dataset, micro, step.world) as batches, torch.no_grad():
        stream = _endless(batches)
        for predict in (augmented(predict, config.evaluation) for predict in predicts):
            predict(next(stream).images)
            _synchronize(step.world.device)
            began = time.perf_counter()
            predict(next(stream).images)
            _synchronize(step.world.device)
            seconds += (time.perf_counter() - began) * len(batches)
    step.train()
    return seconds


def _endless(batches: Any) -> Any:
    while True:
        yield from batches


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
