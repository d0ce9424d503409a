"""Command line of `python -m bench throughput`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from bench import grid
from bench.grid import Backend
from bench.options import (
    add_data,
    add_device,
    add_training,
    find_device,
    positive,
    publish,
    require_positive,
    require_writable,
    say,
    training_config,
    write,
)
from bench.report import picture, require_matplotlib, table
from bench.roofline import roofline
from bench.throughput import OWN, Plan, throughput
from bench.throughput import PEERS as QUICK_PEERS
from loader.resolve import usable_cores
from shard.build import build
from shard.errors import FeedlineError
from shard.synth import synthetic

_BACKENDS: tuple[Backend, ...] = ("auto", "dali", "torch")
# Fills a GPU's record in minutes: model and transform of NVIDIA's ResNet-50 recipe, a batch that one GPU holds.
_GPU_PRESET = {
    "recipe": "resnet50_imagenet", "batch_size": 256, "backend": "dali", "device": "cuda", "repeats": 5,
    "seconds": 4.0, "stages": "read,decode,loader,copy,synthetic,real",
}  # fmt: skip
_MADE, _MADE_CLASSES = 2000, 1000
_DEFAULTS = {"repeats": 5, "seconds": 3.0, "device": "auto"}
T = TypeVar("T")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `throughput` to the command line."""
    command = commands.add_parser(
        "throughput",
        help="images/s of every stage, and which one limits",
        description="Measure reading, decoding, the loader and training, interleaved on the same machine, and say "
        "which stage holds the others back. Data, crop, batch size and model come from a training recipe.",
    )
    add = command.add_argument
    add_data(add, without="; may be left out with --preset, which then makes images")
    add(
        "--preset",
        choices=("gpu",),
        help="gpu: ResNet-50 at batch 256 by DALI on one GPU, in less than 6 minutes",
    )
    add_training(add)
    add("--backend", choices=_BACKENDS, help="measure this backend only (default: both)")
    add_device(add, default=None)
    add("--threads", type=positive, help="decoding threads of every contestant (default: one per core)")
    add("--stages", help=f"comma-separated, out of {', '.join(OWN)} (default: all that the device has)")
    add("--resolutions", metavar="A,B", help="measure at each of these sizes; a record per cell, one table")
    add("--batch-sizes", metavar="A,B", help="the same with batch sizes")
    add("--backends", metavar="A,B", help=f"the same with backends, out of {', '.join(_BACKENDS)}")
    add("--cold", action="store_true", help="evict the split from the page cache before every measurement")
    add("--peers", action="store_true", help=f"also measure {' and '.join(QUICK_PEERS)}")
    add("--repeats", type=positive, help="interleaved repeats (default: 5)")
    add("--seconds", type=float, help="per stage and repeat (default: 3)")
    add(
        "--out",
        type=Path,
        default=Path("bench-throughput"),
        help="folder for throughput.json, throughput.png and roofline.png (default: bench-throughput)",
    )
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    require_matplotlib()
    _fill_in(options)
    require_writable(options.out / "throughput.json")
    device = find_device(options.device)
    plan = _plan(options, device)
    axes = (
        _numbers("--resolutions", options.resolutions),
        _numbers("--batch-sizes", options.batch_sizes),
        _list("--backends", options.backends, _backend),
    )
    with _with_data(options, plan) as ready:  # last: making images takes longer than finding a mistake
        return _measure(options, ready, device, axes)


@contextmanager
def _with_data(options: argparse.Namespace, plan: Plan) -> Iterator[Plan]:
    """Give --preset images where there is no --data; they are removed afterwards."""
    if options.data is not None or options.preset is None:
        yield plan
        return
    with tempfile.TemporaryDirectory(prefix="feedline-") as folder:
        say(f"no --data: making {_MADE:,} images with ImageNet's sizes and bytes (`shard synth`)")
        data = Path(folder) / f"synth-{_MADE}"
        build(synthetic(_MADE, _MADE_CLASSES), data)
        yield replace(plan, config=replace(plan.config, data=str(data)))


def _measure(
    options: argparse.Namespace,
    plan: Plan,
    device: torch.device,
    axes: tuple[list[int], list[int], list[Backend]],
) -> int:
    if any(axes):
        return _grid(options, plan, device, axes)
    record = throughput(plan, device, say)
    publish(record, table(record), as_json=options.json, file=options.out / "throughput.json")
    picture(record, options.out / "throughput.png")
    roofline(record, options.out / "roofline.png")
    return 0


def _grid(
    options: argparse.Namespace,
    plan: Plan,
    device: torch.device,
    axes: tuple[list[int], list[int], list[Backend]],
) -> int:
    cells: dict[str, Any] = {}
    record = {"benchmark": "throughput-grid", "cells": cells}
    for name, cell in grid.cells(plan, *axes):
        say(f"cell {name}")
        cells[name] = throughput(cell, device, say)
        write(
            record, options.out / "throughput-grid.json"
        )  # a cell that fails does not take the others with it
        roofline(cells[name], options.out / f"roofline-{name}.png")
    publish(record, grid.table(cells), as_json=options.json, file=options.out / "throughput-grid.json")
    return 0


def _fill_in(options: argparse.Namespace) -> None:
    """Give flags that are not given the preset's values, or the defaults."""
    if options.preset == "gpu":
        if not torch.cuda.is_available():
            raise FeedlineError(
                "--preset gpu needs a CUDA GPU, this machine has no usable one; leave --preset out"
            )
        values = _GPU_PRESET
    else:
        values = _DEFAULTS
    for name, value in values.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def _plan(options: argparse.Namespace, device: torch.device) -> Plan:
    gpu = device.type == "cuda"
    chosen = options.stages if options.stages is not None else ",".join(s for s in OWN if gpu or s != "copy")
    stages = tuple(name.strip() for name in chosen.split(",") if name.strip())
    if unknown := [name for name in stages if name not in OWN]:
        raise FeedlineError(f"--stages has {unknown[0]!r}; choose out of {', '.join(OWN)}")
    if len(set(stages)) < max(1, len(stages)):
        raise FeedlineError(f"--stages is {chosen!r}; name stages, each once, out of {', '.join(OWN)}")
    if "copy" in stages and not gpu:
        raise FeedlineError("--stages has 'copy', which is to a GPU, and the device is cpu; leave it out")
    if options.cold and options.peers:
        raise FeedlineError(
            "--cold and --peers are given together, but DALI's reader maps the shards, which then stay in memory, and "
            "torchvision reads copies of the images; leave one of them out"
        )
    require_positive(options.seconds)
    return Plan(
        config=training_config(options),
        stages=stages + (QUICK_PEERS if options.peers else ()),
        repeats=options.repeats,
        seconds=options.seconds,
        threads=options.threads or usable_cores(),
        cold=options.cold,
    )


def _numbers(flag: str, text: str | None) -> list[int]:
    return _list(flag, text, positive)


def _backend(text: str) -> Backend:
    for name in _BACKENDS:
        if text == name:
            return name
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(_BACKENDS)}")


def _list(flag: str, text: str | None, convert: Callable[[str], T]) -> list[T]:
    """Values of a comma-separated flag.

    Raises:
        FeedlineError: one of them is wrong.
    """
    try:
        return [convert(word.strip()) for word in (text or "").split(",") if word.strip()]
    except argparse.ArgumentTypeError as error:
        raise FeedlineError(f"{flag} is {text!r}: {error}; separate values by commas") from error
