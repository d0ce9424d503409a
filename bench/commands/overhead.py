"""Command line of `python -m bench overhead`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from bench.options import (
    add_device,
    add_training,
    find_device,
    local_folder,
    positive,
    publish,
    require_positive,
    require_writable,
    say,
    training_config,
)
from bench.overhead import overhead, table


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `overhead` to the command line."""
    command = commands.add_parser(
        "overhead",
        help="our training step against a plain PyTorch loop",
        description="Measure the training step and a plain loop on the same synthetic batch, interleaved; with --data "
        "also training on real data (the feed ratio). Model, batch and precision come from a training recipe.",
    )
    add = command.add_argument
    add("--data", type=local_folder, metavar="DATASET", help="also measure training on this dataset")
    add_training(add)
    add("--precision", choices=("bf16", "fp16", "tf32", "fp32"), help="(default: the recipe's, or bf16)")
    add_device(add)
    add("--repeats", type=positive, default=7, help="interleaved repeats (default: 7)")
    add("--seconds", type=float, default=3.0, help="per contestant and repeat (default: 3)")
    add("--out", type=Path, default=Path("bench-overhead.json"), help="where the record goes")
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_run, backend=None)


def _run(options: argparse.Namespace) -> int:
    require_positive(options.seconds)
    require_writable(options.out)
    config = training_config(options)
    if options.precision:
        config = dataclasses.replace(
            config, step=dataclasses.replace(config.step, precision=options.precision)
        )
    record = overhead(
        config,
        find_device(options.device),
        options.repeats,
        options.seconds,
        say,
    )
    publish(record, table(record), as_json=options.json, file=options.out)
    return 0
