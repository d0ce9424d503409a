"""Command line of `python -m bench accelerator`."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

from bench.accelerator import PRESETS, Accelerator
from bench.accelerator_report import table
from bench.accelerator_run import Plan, accelerator
from bench.options import (
    add_data,
    positive,
    publish,
    require_positive,
    require_writable,
    say,
    training_config,
)
from shard.errors import FeedlineError
from train.recipes import RECIPES


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `accelerator` to the command line."""
    command = commands.add_parser(
        "accelerator",
        help="how many GPUs of a known speed this node can feed, without having one",
        description="Emulate accelerators that sleep for the time of a step, as MLPerf Storage does, feed them with "
        "the loader, and report their utilisation (pass: 90 %%).",
    )
    add = command.add_argument
    add_data(add)
    add("--accelerators", type=positive, default=1, metavar="N", help="how many of them (default: 1)")
    add("--like", choices=sorted(PRESETS), help="speed of MLPerf Storage's (default: h100-resnet50)")
    add("--step-ms", type=float, metavar="MS", help="or: milliseconds of computing per batch")
    add("--images-per-s", type=float, metavar="X", help="or: images/s that one accelerator takes")
    add("--batch-size", type=positive, help="images per batch (default: 64, or what --like has)")
    add("--recipe", choices=sorted(RECIPES), help="training recipe that gives crop and augmentation")
    add("--split", help="split to read (default: the recipe's training split)")
    add("--size", type=positive, help="side of the crops, pixels (default: the recipe's, or 224)")
    add("--backend", choices=("auto", "dali", "torch"), help="of the loader, which decodes on the CPU")
    add("--threads", type=positive, help="decoding threads per accelerator (default: its share of the cores)")
    add(
        "--prefetch",
        type=positive,
        default=4,
        help="batches that a loader prepares ahead (default: 4)",
    )
    add(
        "--blocking",
        action="store_true",
        help="ask for a batch only when a step has ended, as DLIO does (default: when it begins, as with a GPU)",
    )
    add("--no-search", action="store_true", help="do not look for the number that is fed")
    add("--most", type=positive, default=16, help="greatest number to try (default: 16)")
    add("--check", metavar="RATIOS", help="also compare AU with loader ÷ demand: 0.5,0.8,1,1.25,2")
    add(
        "--hold",
        type=float,
        metavar="X",
        help="with --check: hold the loader back to X images/s, a known rate",
    )
    add("--repeats", type=positive, default=3, help="of every measurement (default: 3)")
    add("--seconds", type=float, default=5.0, help="of each (default: 5)")
    add("--out", type=Path, help="also write the record to this file")
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_run, model=None)


def _run(options: argparse.Namespace) -> int:
    require_positive(options.seconds)
    require_writable(options.out)
    name, like = _accelerator(options)
    if options.accelerators > options.most:
        raise FeedlineError(
            f"--accelerators is {options.accelerators}, more than --most {options.most}; raise it"
        )
    ratios = tuple(_number("--check", text) for text in options.check.split(",")) if options.check else ()
    if options.hold is not None:
        require_positive(options.hold, "--hold")
        if not ratios:
            raise FeedlineError("--hold is given without --check, to which it belongs")
    plan = Plan(
        config=training_config(options),
        name=name,
        accelerator=like,
        accelerators=options.accelerators,
        most=options.most,
        search=not options.no_search,
        ratios=ratios,
        held=options.hold,
        threads=options.threads,
        prefetch=options.prefetch,
        blocking=options.blocking,
        repeats=options.repeats,
        seconds=options.seconds,
    )
    record = accelerator(plan, say)
    publish(record, table(record), as_json=options.json, file=options.out)
    return 0


def _accelerator(options: argparse.Namespace) -> tuple[str, Accelerator]:
    """Name and figures of the accelerator that the flags describe."""
    given = [flag for flag in ("like", "step_ms", "images_per_s") if getattr(options, flag) is not None]
    if len(given) > 1:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
        raise FeedlineError(f"{flags} are given together; each says how fast an accelerator is, choose one")
    if not given or given == ["like"]:
        name = options.like or "h100-resnet50"
        preset = PRESETS[name]
        # Another batch at the same speed, where memory is short.
        if options.batch_size and options.batch_size != preset.batch_size:
            share = options.batch_size / preset.batch_size
            name += f", batches of {options.batch_size}"
            preset = dataclasses.replace(preset, batch_size=options.batch_size, step_s=preset.step_s * share)
        return name, preset
    batch_size = options.batch_size or 64
    value = getattr(options, given[0])
    flag = f"--{given[0].replace('_', '-')}"
    require_positive(value, flag)
    step_s = value / 1000 if given == ["step_ms"] else batch_size / value
    name = f"accelerator of {batch_size / step_s:,.0f} images/s"
    return name, Accelerator(step_s=step_s, batch_size=batch_size, source=f"{flag} {value:g}")


def _number(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise FeedlineError(f"{flag} has {text!r}; it takes positive numbers with commas, such as 0.5,1,2")
    return value
