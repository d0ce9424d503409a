"""`python -m bench scaling`: measure a curve, fit it, extrapolate it, and simulate what cannot be had."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench.long_epochs import with_long_epochs
from bench.measure import measure
from bench.page_cache import state
from bench.processes import running
from bench.scaling.plan import Plan
from bench.scaling.ranks import PROGRESS, Job, Ranks, measure_ranks
from bench.scaling.record import make_record
from bench.stages import Load
from loader import Loader
from loader.resolve import usable_cores
from shard.dataset import Dataset
from shard.errors import FeedlineError

Say = Callable[[str], None]
_ERROR = re.compile(r"(?:\[rank\d+\]: *)?((?!ChildFailedError)\w+(?:\.\w+)*(?:Error|Exception): .+)")


def scaling(plan: Plan, say: Say) -> dict[str, Any] | None:
    """Measure, and return the record; None on the ranks but the first, where torchrun started this.

    Raises:
        FeedlineError: what is scaled is not there, or a measurement fails.
    """
    if plan.config.data is None:
        raise FeedlineError("data is missing; give --data DATASET")
    split = Dataset.open(plan.config.data).split(plan.config.input.train_split)  # before anything is started
    if plan.over == "threads":
        measured: dict[str, Any] | None = {"images_per_s": _threads(plan, say), "all_reduces": []}
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        measured = measure_ranks(_job(plan, int(os.environ["LOCAL_WORLD_SIZE"])), Ranks.join())
    else:
        measured = _torchrun(plan, say)
    return None if measured is None else make_record(plan, measured, state(sum(split.shard_bytes)))


def _threads(plan: Plan, say: Say) -> dict[str, list[float]]:
    """Images/s of the loader alone by number of decoding threads."""
    config = plan.config.input
    assert plan.config.data is not None
    dataset = with_long_epochs(Dataset.open(plan.config.data), config.train_split, config.batch_size)
    with ExitStack() as stack:
        stages = []
        for count in plan.counts:
            loader = Loader(
                dataset, config.train_split, config.train_transform(), batch_size=config.batch_size,
                shuffle=True, drop_last=True, backend=config.loader_backend, threads=count,
            )  # fmt: skip
            stages.append(Load(loader, str(count), f"loader, {count} threads"))
            stack.callback(stages[-1].close)
        series = measure(stages, plan.repeats, plan.seconds, say)
    return {one.name: [round(rate, 1) for rate in one.images_per_s] for one in series}


def _job(plan: Plan, local_size: int) -> Job:
    cuda = plan.over == "gpus" or (plan.over == "nodes" and torch.cuda.is_available())
    return Job(
        config=plan.config,
        strong=plan.strong,
        over=plan.over,
        counts=plan.counts,
        unit=local_size if plan.over == "nodes" else 1,
        device="cuda" if cuda else "cpu",
        repeats=plan.repeats,
        seconds=plan.seconds,
    )


def _torchrun(plan: Plan, say: Say) -> dict[str, Any]:
    """Start the ranks on this machine."""
    number = max(plan.counts)
    _require(plan, number)
    with tempfile.TemporaryDirectory(prefix="feedline-scaling-") as folder:
        job, out = Path(folder, "job.pickle"), Path(folder, "out.json")
        job.write_bytes(pickle.dumps(_job(plan, number)))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(number), "-m", "bench.scaling.ranks", str(job), str(out)]
        say(f"starting {number} processes with torchrun")
        lines: list[str] = []
        with running(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
            env=_environment(plan),
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.strip())
                if line.startswith(PROGRESS):
                    say(line.removeprefix(PROGRESS).rstrip())
        if process.returncode or not out.exists():
            said = Path(f"{out}.error")
            why = said.read_text() if said.exists() else _last_words(lines)
            raise FeedlineError(f"scaling over {plan.over} failed: {why}")
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def _environment(plan: Plan) -> dict[str, str]:
    one = {"OMP_NUM_THREADS": "1"} if plan.over == "processes" else {}
    return {**os.environ, **one}


def _require(plan: Plan, number: int) -> None:
    """Raise FeedlineError for more processes than this machine has room for."""
    if plan.over == "nodes":
        raise FeedlineError(
            "--over nodes needs torchrun on every node: srun torchrun --nnodes N --nproc-per-node G --rdzv-backend "
            "c10d --rdzv-endpoint HOST:PORT -m bench scaling …; see docs/benchmarks.md"
        )
    there = torch.cuda.device_count() if plan.over == "gpus" else usable_cores()
    if number > there:
        what = "GPU(s)" if plan.over == "gpus" else "usable core(s)"
        raise FeedlineError(
            f"--counts has {number}, but this machine has {there} {what}; use --to to extrapolate"
        )


def _last_words(lines: list[str]) -> str:
    # Not a line of the traceback's code, such as `raise ValueError(`, which torch prints above it.
    errors = [found[1] for line in lines if (found := _ERROR.fullmatch(line))]
    return (errors or [line for line in lines if line] or ["it said nothing"])[0]
