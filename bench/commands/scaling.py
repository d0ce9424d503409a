"""Command line of `python -m bench scaling`."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from bench.accelerator import PRESETS
from bench.options import (
    add_data,
    add_training,
    positive,
    publish,
    require_positive,
    require_writable,
    say,
    training_config,
)
from bench.report import require_matplotlib
from bench.scaling.network import Network
from bench.scaling.plan import OVER, Plan
from bench.scaling.report import picture, table
from bench.scaling.run import scaling
from loader.resolve import usable_cores
from shard.errors import FeedlineError


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `scaling` to the command line."""
    command = commands.add_parser(
        "scaling",
        help="images/s over threads, processes, GPUs or nodes, with a fitted law",
        description="Measure how throughput grows, fit the universal scalability law, extrapolate it with its "
        "interval, and simulate the all-reduce of ranks that cannot be had.",
    )
    add = command.add_argument
    add_data(add)
    add(
        "--over",
        choices=OVER,
        required=True,
        help="threads: the loader alone; the others: training on real data",
    )
    add("--counts", default="1,2", metavar="N,…", help="to measure, with 1 among them (default: 1,2)")
    mode = command.add_mutually_exclusive_group()
    mode.add_argument("--weak", action="store_true", help="the same batch per rank (default)")
    mode.add_argument("--strong", action="store_true", help="the same global batch")
    add(
        "--to", type=positive, default=8, metavar="N", help="extrapolate and simulate up to here (default: 8)"
    )
    add(
        "--like",
        choices=sorted(PRESETS),
        help="also simulate accelerators of this speed, over the network below",
    )
    add(
        "--gb-per-s",
        type=float,
        default=50.0,
        help="assumed for --like, 10**9 bytes (default: 50, 400 Gbit/s)",
    )
    add("--latency-us", type=float, default=10.0, help="assumed for --like, microseconds (default: 10)")
    add_training(add, batch="images per rank (weak) or of all (strong)")
    add("--backend", choices=("auto", "dali", "torch"), help="of the loader")
    add(
        "--threads", type=positive, help="decoding threads per rank (default: the cores ÷ the greatest count)"
    )
    add("--repeats", type=positive, default=5, help="interleaved repeats (default: 5)")
    add("--seconds", type=float, default=3.0, help="per count and repeat (default: 3)")
    add("--out", type=Path, default=Path("bench-scaling"), help="folder for scaling.json and scaling.png")
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    require_matplotlib()
    require_writable(options.out / "scaling.json")
    record = scaling(_plan(options), say)
    if record is None:  # another rank writes it
        return 0
    publish(record, table(record), as_json=options.json, file=options.out / "scaling.json")
    picture(record, options.out / "scaling.png")
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    require_positive(options.seconds)
    require_positive(options.gb_per_s, "--gb-per-s")
    require_positive(options.latency_us, "--latency-us")
    counts = _counts(options.counts)
    config = training_config(options)
    # The same for every count: what one process has must not shrink when there are two.
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", max(counts)))
    threads = options.threads or max(1, usable_cores() // beside)
    config = dataclasses.replace(config, input=dataclasses.replace(config.input, loader_threads=threads))
    batch_size = config.input.batch_size
    if options.strong and (bad := [n for n in counts if batch_size % n]):
        raise FeedlineError(
            f"--batch-size {batch_size} does not divide into {bad[0]} equal parts; --strong needs that"
        )
    return Plan(
        config=config,
        over=options.over,
        counts=counts,
        strong=options.strong,
        to=options.to,
        like=(options.like, PRESETS[options.like]) if options.like else None,
        network=Network(options.latency_us / 1e6, 1e-9 / options.gb_per_s),
        repeats=options.repeats,
        seconds=options.seconds,
    )


def _counts(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    counts = tuple(sorted({int(word) for word in words if word.isdecimal()}))
    if not all(word.isdecimal() for word in words) or counts[:1] != (1,):
        raise FeedlineError(f"--counts is {text!r}; it takes whole numbers with 1 among them, such as 1,2,4")
    return counts
