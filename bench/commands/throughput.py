"""Command line of `python -m bench throughput`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.options import find_device, positive, publish, require_positive, say, training_config
from bench.report import picture, require_matplotlib, table
from bench.throughput import OWN, Plan, throughput
from bench.throughput import PEERS as QUICK_PEERS
from loader.resolve import usable_cores
from shard.errors import FeedlineError
from train.recipes import RECIPES


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `throughput` to the command line."""
    command = commands.add_parser(
        "throughput",
        help="images/s of every stage, and which one limits",
        description="Measure reading, decoding, the loader and training, interleaved on the same machine, and say "
        "which stage holds the others back. Data, crop, batch size and model come from a training recipe.",
    )
    add = command.add_argument
    add("--data", type=Path, required=True, metavar="DATASET", help="folder made by `python -m shard build`")
    add("--recipe", choices=sorted(RECIPES), help="training recipe to measure (default: the settings below)")
    add("--split", help="split to read (default: the recipe's training split)")
    add("--model", help="any timm model (default: the recipe's, or resnet18)")
    add("--size", type=positive, help="side of the crops, pixels (default: the recipe's, or 224)")
    add("--batch-size", type=positive, help="images per step (default: the recipe's, or 64)")
    add("--backend", choices=("auto", "dali", "torch"), help="measure this backend only (default: both)")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: a CUDA GPU where there is one",
    )
    add("--threads", type=positive, help="decoding threads of every contestant (default: one per core)")
    add("--stages", default=",".join(OWN), help=f"comma-separated, out of {', '.join(OWN)} (default: all)")
    add("--peers", action="store_true", help=f"also measure {' and '.join(QUICK_PEERS)}")
    add("--repeats", type=positive, default=5, help="interleaved repeats (default: 5)")
    add("--seconds", type=float, default=3.0, help="per stage and repeat (default: 3)")
    add(
        "--out",
        type=Path,
        default=Path("bench-throughput"),
        help="folder for throughput.json and throughput.png",
    )
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    require_matplotlib()
    device = find_device(options.device)
    record = throughput(_plan(options), device, say)
    publish(record, table(record), as_json=options.json, file=options.out / "throughput.json")
    picture(record, options.out / "throughput.png")
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    stages = tuple(name.strip() for name in options.stages.split(",") if name.strip())
    if unknown := [name for name in stages if name not in OWN]:
        raise FeedlineError(f"--stages has {unknown[0]!r}; choose out of {', '.join(OWN)}")
    require_positive(options.seconds)
    return Plan(
        config=training_config(options),
        stages=stages + (QUICK_PEERS if options.peers else ()),
        repeats=options.repeats,
        seconds=options.seconds,
        threads=options.threads or usable_cores(),
    )
