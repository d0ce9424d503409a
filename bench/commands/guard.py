"""Command line of `python -m bench guard`."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.guard.baseline import Baseline, load, machine_class, save
from bench.guard.contest import Measured
from bench.guard.report import ratios_measured, table, verdict, verdict_record
from bench.guard.session import Result, check, measure
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
)
from shard.errors import FeedlineError
from train.config import Config
from train.environment import environment

PROGRAM: tuple[str, ...] = (sys.executable, "-m", "bench")  # of the processes that measure
_RUNS, _MARGIN = 5, 0.08
_DEFAULTS = {"model": "test_resnet", "size": 64, "batch_size": 16}


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `guard` to the command line."""
    command = commands.add_parser(
        "guard",
        help="did the last change make a stage slower? For CI",
        description="Measure every stage against the same work written by hand, compare the ratios with a committed "
        "baseline, and exit with 1 where one is worse beyond the noise, naming stage, change and suspect.",
    )
    add = command.add_argument
    add_data(add)
    add("--baseline", type=Path, default=Path("guard.json"), metavar="FILE", help="(default: guard.json)")
    add("--class", dest="machine", metavar="NAME", help="class of machine (default: CPU, cores and GPU)")
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--update", action="store_true", help="take the baseline of this class instead of comparing with it"
    )
    what.add_argument("--measure", action="store_true", help="measure, and compare with nothing")
    add("--stages", metavar="NAME,…", help="with --measure: only these, such as read,step (default: all)")
    add("--runs", type=positive, help=f"with --update: runs that make a baseline (default: {_RUNS})")
    add(
        "--margin",
        type=float,
        help=f"with --update: change that is no regression (default: {_MARGIN})",
    )
    add_training(add, _DEFAULTS | {"model": f"{_DEFAULTS['model']}, a tiny one"})
    add("--backend", choices=("auto", "dali", "torch"), help="of the loader (default: the recipe's, or auto)")
    add_device(add)
    add(
        "--seconds",
        type=float,
        default=30.0,
        help="longest time (default: 30), or twice that of 8 repeats; as long again, in another process, to confirm",
    )
    add("--out", type=Path, metavar="FILE", help="write the record there")
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    require_positive(options.seconds)
    require_writable(options.out)
    if options.margin is not None and not 0 <= options.margin < math.inf:
        raise FeedlineError(f"--margin is {options.margin}; it cannot be negative, nor without end")
    for flag in () if options.update else ("margin", "runs"):
        if getattr(options, flag) is not None:
            raise FeedlineError(
                f"--{flag} is given without --update: it belongs to the baseline when that is taken"
            )
    if options.stages is not None and not options.measure:
        raise FeedlineError(
            "--stages is given without --measure: comparisons and baselines are of all stages"
        )
    device = find_device(options.device)
    where = environment(device)
    name = options.machine or machine_class(where)
    if options.update:
        return _update(options, name, where)
    if options.measure:
        stages = options.stages.split(",") if options.stages is not None else ()
        result = measure(_config(options), device, options.seconds, say, stages)
        publish(result.record, table(result.measured, []), as_json=options.json, file=options.out)
        return 0
    baseline = load(options.baseline, name)

    def same(settings: dict[str, Any]) -> Baseline:
        baseline.require_same(settings, options.baseline)
        return baseline

    def again(stages: list[str]) -> Measured:
        record = _elsewhere(options, "the second look", stages)
        same(record["settings"])
        return ratios_measured(record["ratios"])

    result = check(_config(options), device, options.seconds, same, again, say)
    return _tell(options, result, baseline)


def _tell(options: argparse.Namespace, result: Result, baseline: Baseline) -> int:
    record = result.record | {
        "class": baseline.name,
        "baseline": str(options.baseline),
        "findings": verdict_record(result.findings),
    }
    text = f"{table(result.measured, result.changes)}\n\n{verdict(result.changes, result.findings, baseline)}"
    publish(record, text, as_json=options.json, file=options.out)
    return 1 if result.findings else 0


def _config(options: argparse.Namespace) -> Config:
    if not options.recipe:
        for name, value in _DEFAULTS.items():
            setattr(options, name, getattr(options, name) or value)
    return training_config(options)


def _update(options: argparse.Namespace, name: str, where: dict[str, Any]) -> int:
    require_writable(options.baseline)
    records, count = [], options.runs or _RUNS
    for number in range(count):
        say(f"run {number + 1} of {count}")
        records.append(_elsewhere(options, f"run {number + 1}"))
    runs = [
        {
            stage: {signal: one["value"] for signal, one in found.items()}
            for stage, found in record["ratios"].items()
        }
        for record in records
    ]
    baseline = Baseline(
        name=name,
        margin=_MARGIN if options.margin is None else options.margin,
        settings=records[0]["settings"],
        runs=runs,
        environment=where,
    )
    save(options.baseline, baseline)
    for stage, signals in runs[0].items():
        for signal in signals:
            if band := baseline.band(stage, signal):
                print(f"{stage:10} {signal:8} {band.value:.3f} ({band.low:.3f} – {band.high:.3f})")
    print(f"baseline of class {name!r} written to {options.baseline}: commit it")
    return 0


def _elsewhere(options: argparse.Namespace, what: str, stages: Sequence[str] = ()) -> dict[str, Any]:
    """Record of a process of its own: what lasts as long as a process is part of the noise."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "record.json")  # and not standard output, on which libraries print, too
        command = [*PROGRAM, "guard", "--measure", "--out", str(file), *_flags(options)]
        command += ["--stages", ",".join(stages)] if stages else []
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise FeedlineError(f"{what} failed with status {done.returncode}: see above")
        record: dict[str, Any] = json.loads(file.read_text())
        return record


def _flags(options: argparse.Namespace) -> list[str]:
    names = ("data", "recipe", "split", "model", "size", "batch_size", "backend", "device", "seconds")
    given = {name: getattr(options, name) for name in names}
    return [
        word
        for name, value in given.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
