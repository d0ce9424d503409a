"""`--dry-run` and `--find-batch-size`: what a training would take, without starting it. Neither writes anything."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from loader import Batch
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.build import length_of, make_step
from train.config import Config
from train.distributed import World
from train.flops import forward_flops
from train.inputs import eval_loader, train_loader
from train.memory import fits_in_budget, fits_on_gpu, largest, measure_memory
from train.step import TrainStep
from train.telemetry import clock, peak_memory_bytes

_WARMUP, _MEASURED = 3, 5  # steps


def dry_run(config: Config, dataset: Dataset, world: World) -> dict[str, Any]:
    """Do a few steps with real data, and return what the whole training would take.

    Returns:
        parameters, classes, samples, flops_per_image (forward), steps_per_epoch, steps, epochs, batch_size, ranks,
        micro_batch, memory_bytes (of one rank), memory_measured (on a GPU; else estimated), step_s, eval_s (per
        evaluation), expected_s.
    """
    step = make_step(config, len(dataset.classes), world)
    net = step.net.train()
    with train_loader(config.input, dataset, config.seed, config.step.accumulate, world) as batches:
        steps_per_epoch = batches.num_samples // config.input.batch_size
        step_s, batch = _time_steps(step, batches, config.step.accumulate)
        micro = batches.batch_size
    measured = world.device.type == "cuda"
    memory = peak_memory_bytes(world.device) if measured else measure_memory(step, batch).total
    eval_s = _time_evaluation(config, dataset, step, micro)
    length = length_of(config, dataset)
    return {
        "arch": config.model.arch,
        "parameters": sum(p.numel() for p in net.parameters()),
        "classes": len(dataset.classes),
        "samples": len(dataset.split(config.input.train_split)),
        "flops_per_image": forward_flops(net, config.input.size, world.device),
        "steps_per_epoch": steps_per_epoch,
        "steps": length.steps,
        "epochs": length.epochs,
        "batch_size": config.input.batch_size,
        "ranks": world.size,
        "micro_batch": micro,
        "memory_bytes": memory,
        "memory_measured": measured,
        "step_s": step_s,
        "eval_s": eval_s,
        "expected_s": length.steps * step_s + length.epochs * eval_s,
    }


def plan_text(found: dict[str, Any]) -> str:
    """What `dry_run` found, for people."""
    speed = found["batch_size"] / found["step_s"]
    how = "measured" if found["memory_measured"] else "estimated: weights, gradients, optimiser, activations"
    rows = {
        "model": f"{found['arch']}, {found['parameters'] / 1e6:.2f} M parameters, {found['classes']} classes",
        "forward pass": f"{found['flops_per_image'] / 1e9:.3f} GFLOPs per image (training takes three times that)",
        "steps": f"{found['steps']} = {found['epochs']} epochs × {found['steps_per_epoch']}, of {found['samples']}",
        "batch": f"{found['batch_size']}, as {found['micro_batch']} per micro-batch on {found['ranks']} rank(s)",
        "memory": f"{found['memory_bytes'] / 2**30:.2f} GiB per rank ({how})",
        "speed": f"{speed:,.0f} images/s in {_MEASURED} steps with real data, after {_WARMUP} to warm up",
        "evaluation": f"{found['eval_s']:.1f} s each",
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
    step.net.train()
    if on_gpu:
        if memory_gib is not None:
            total = torch.cuda.get_device_properties(world.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gib * 2**30 / total), world.device)
        fits = fits_on_gpu(step, side, classes)
    else:
        assert memory_gib is not None
        fits = fits_in_budget(step, side, classes, int(memory_gib * 2**30))
    power, most = largest(fits, limit=len(dataset.split(config.input.train_split)))
    if power == 0:
        raise FeedlineError(f"--find-batch-size: not even one image of {side} px fits in memory")
    return batch_size_text(config, power, most)


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


def _time_steps(step: TrainStep, batches: Any, accumulate: int) -> tuple[float, Batch]:
    """Seconds per step with real data, and the last batch; weights stay as they are."""
    stream, began = _endless(batches), 0.0
    for number in range(_WARMUP + _MEASURED):
        if number == _WARMUP:
            _synchronize(step.world.device)
            began = time.perf_counter()
        for part in range(accumulate):
            batch = next(stream)
            step.forward_backward(batch.images, batch.labels, batch.valid, last=part == accumulate - 1)
        step.update(0.0)
    _synchronize(step.world.device)
    return (time.perf_counter() - began) / _MEASURED, batch


def _time_evaluation(config: Config, dataset: Dataset, step: TrainStep, micro: int) -> float:
    """Seconds that an evaluation takes, from two batches of it."""
    step.net.eval()
    with eval_loader(config.input, dataset, micro, step.world) as batches, torch.no_grad():
        stream = _endless(batches)
        step.predict(next(stream).images)
        _synchronize(step.world.device)
        began = time.perf_counter()
        step.predict(next(stream).images)
        _synchronize(step.world.device)
        step.net.train()
        return (time.perf_counter() - began) * len(batches)


def _endless(batches: Any) -> Any:
    while True:
        yield from batches


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
