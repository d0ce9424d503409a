"""Command line of `python -m bench doctor`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from bench.doctor import Plan, diagnose
from bench.options import (
    add_device,
    add_training,
    find_device,
    positive,
    publish,
    require_positive,
    require_writable,
    say,
    training_config,
)
from bench.prescription import prescription
from train.config import Config


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor` to the command line."""
    command = commands.add_parser(
        "doctor",
        help="what limits this training, and what helps",
        description="Take a training apart: storage, decoding, augmentation, copy to the device, model; say which one "
        "limits it, and measure what may help. Flags are those of `python -m train`.",
    )
    add = command.add_argument
    add("--data", required=True, metavar="DATASET", help="folder or URL made by `python -m shard build`")
    add_training(add)
    add(
        "--augment",
        metavar="POLICY",
        help="rand-m9-mstd0.5-inc1 and the like (default: the recipe's, or none)",
    )
    add("--precision", choices=("bf16", "fp16", "tf32", "fp32"), help="(default: the recipe's, or bf16)")
    add("--backend", choices=("auto", "dali", "torch"), help="decoder of the loader (default: auto)")
    add("--threads", type=positive, help="decoding threads (default: one per core)")
    add("--shuffle", choices=("global", "window"), help="order (default: the recipe's, or global)")
    add("--window", type=positive, metavar="SHARDS", help="that a lane of the order window mixes")
    add("--lanes", type=positive, help="lanes of the order window")
    add("--cache", type=Path, metavar="FOLDER", help="that training would use for a dataset at a URL")
    add("--cache-gb", type=float, metavar="GB", help="most that this cache may take")
    add(
        "--page-cache", choices=("auto", "hot", "cold"), default="auto",
        help="cold: drop the shards from memory before each epoch (default: where they are larger than it)",
    )  # fmt: skip
    add_device(add)
    add("--no-verify", action="store_true", help="do not measure the suggestions")
    add("--try-compile", action="store_true", help="measure torch.compile on a CPU, too: takes a minute")
    add("--repeats", type=positive, default=5, help="interleaved repeats (default: 5)")
    add("--seconds", type=float, default=1.0, help="per stage and repeat (default: 1)")
    add("--out", type=Path, help="also write the record to this file")
    add("--json", action="store_true", help="print the record instead of the words")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    require_positive(options.seconds)
    require_writable(options.out)
    plan = Plan(
        config=_config(options),
        repeats=options.repeats,
        seconds=options.seconds,
        page_cache=options.page_cache,
        verify=not options.no_verify,
        compilation=options.try_compile,
    )
    record = diagnose(plan, find_device(options.device), say)
    publish(record, prescription(record), as_json=options.json, file=options.out)
    return 0


def _config(options: argparse.Namespace) -> Config:
    config = training_config(options)
    chosen = {
        "augment": options.augment,
        "loader_threads": options.threads,
        "shuffle": options.shuffle,
        "window": options.window,
        "lanes": options.lanes,
        "cache": options.cache,
        "cache_gb": options.cache_gb,
    }
    images = dataclasses.replace(config.input, **{k: v for k, v in chosen.items() if v is not None})
    step = config.step
    if options.precision is not None:
        step = dataclasses.replace(step, precision=options.precision)
    return dataclasses.replace(config, input=images, step=dataclasses.replace(step, accumulate=1))
