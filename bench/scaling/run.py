"""`python -m bench scaling`: measure a curve, fit it, extrapolate it, and simulate what cannot be had."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.accelerator import Accelerator
from bench.environment import environment
from bench.intervals import median_interval, ratio_interval
from bench.long_epochs import with_long_epochs
from bench.measure import measure
from bench.scaling.law import extrapolate, extremes, fit, speedups
from bench.scaling.network import Measured, Network, Scenario, fit_network, simulate, worst_error
from bench.scaling.ranks import Job, Ranks, measure_ranks
from bench.stages import Load
from loader import Loader
from loader.resolve import usable_cores
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.config import Config, to_dict

Say = Callable[[str], None]
OVER = ("threads", "processes", "gpus", "nodes")
RESNET50_BYTES = 25_557_032 * 4  # parameters of ResNet-50 with 1,000 classes, gradients in fp32
_EPOCH_STEPS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        config: of the training, or of the loader alone where threads are scaled.
        over: one of `OVER`.
        counts: to measure, with 1.
        strong: the global batch stays the same; otherwise each rank's.
        to: greatest count to extrapolate and simulate.
        like: name and figures of an accelerator to simulate besides; None: none.
        network: assumed for it.
        repeats: of every count, interleaved.
        seconds: of each.
    """

    config: Config
    over: str
    counts: tuple[int, ...]
    strong: bool
    to: int
    like: tuple[str, Accelerator] | None
    network: Network
    repeats: int
    seconds: float


def scaling(plan: Plan, say: Say) -> dict[str, Any] | None:
    """Measure, and return the record; None on the ranks but the first, where torchrun started this.

    Raises:
        FeedlineError: what is scaled is not there, or a measurement fails.
    """
    if plan.over == "threads":
        measured: dict[str, Any] | None = {"images_per_s": _threads(plan, say), "all_reduces": []}
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        measured = measure_ranks(_job(plan, int(os.environ["LOCAL_WORLD_SIZE"])), Ranks.join())
    else:
        measured = _torchrun(plan, say)
    return None if measured is None else make_record(plan, measured)


def make_record(plan: Plan, measured: dict[str, Any]) -> dict[str, Any]:
    """Fit, extrapolate and simulate what was measured; see `measure_ranks`."""
    rates = {int(count): values for count, values in measured["images_per_s"].items()}
    ahead = _ahead(plan)
    network, points = None, [Measured(**point) for point in measured["all_reduces"]]
    if points:
        network = fit_network(points)
    cuda = plan.over in ("gpus", "nodes") and torch.cuda.is_available()
    return {
        "benchmark": "scaling",
        "environment": environment(torch.device("cuda", 0) if cuda else torch.device("cpu")),
        "settings": {
            "dataset": plan.config.data,
            "over": plan.over,
            "mode": "strong" if plan.strong else "weak",
            "work": "loader alone" if plan.over == "threads" else "training on real data",
            "repeats": plan.repeats,
            "seconds": plan.seconds,
            "page_cache": "hot",
            "omp_threads": None if plan.over == "threads" or cuda else 1,
            "config": to_dict(plan.config),
        },
        "points": [_point(count, rates) for count in sorted(rates)],
        "law": _law(rates),
        "extrapolated": [
            {"kind": "extrapolated", **asdict(one)}
            for one in (extrapolate(rates, ahead) if len(rates) > 1 else [])
        ],
        "all_reduces": measured["all_reduces"],
        "network": None
        if network is None
        else {
            "backend": measured["backend"],
            **asdict(network),
            "worst_relative_error": round(worst_error(network, points), 3),
        },
        # Those that were measured, too: they show how good the simulation is.
        "simulated": [
            _simulated(one, sorted({*rates, *ahead} - {1}))
            for one in _scenarios(plan, rates, measured, network)
        ],
    }


def _ahead(plan: Plan) -> list[int]:
    """Counts that were not measured: powers of two, up to the greatest of interest."""
    ahead = {2**k for k in range(1, 20) if 2**k <= plan.to} | {plan.to}
    return sorted(n for n in ahead if n > max(plan.counts))


def _point(count: int, rates: dict[int, list[float]]) -> dict[str, Any]:
    return {
        "kind": "measured",
        "count": count,
        "images_per_s": rates[count],
        "interval": asdict(median_interval(rates[count])),
        "speedup": asdict(ratio_interval(rates[count], rates[1])),
    }


def _law(rates: dict[int, list[float]]) -> dict[str, Any] | None:
    found = speedups(rates)
    several = sum(count > 1 for count in found)
    if not several:
        return None
    if several > 1:
        law = fit(found)
        return {"determined": True, **asdict(law), "peak": law.peak if law.kappa else None}
    low, high = extremes(found)
    return {"determined": False, "coherence_only": asdict(low), "contention_only": asdict(high)}


def _scenarios(
    plan: Plan, rates: dict[int, list[float]], measured: dict[str, Any], network: Network | None
) -> list[tuple[Scenario, str]]:
    """What is simulated, and the assumptions it rests on."""
    found = []
    if network is not None:
        unit = measured["local_size"] if plan.over == "nodes" else 1
        images = plan.config.input.batch_size * (1 if plan.strong else unit)
        scenario = Scenario(
            name=f"{plan.config.model.arch} as measured here, network as measured here ({measured['backend']})",
            step_s=images / median(rates[1]),
            batch_size=images,
            unit=unit,
            gradient_bytes=measured["gradient_bytes"],
            network=network,
            strong=plan.strong,
        )
        found.append((scenario, "every rank has its own cores and computes as fast as one alone"))
    if plan.like is not None:
        name, accelerator = plan.like
        scenario = Scenario(
            name=f"{name}, network as assumed",
            step_s=accelerator.step_s,
            batch_size=accelerator.batch_size,
            gradient_bytes=RESNET50_BYTES,
            network=plan.network,
            strong=plan.strong,
        )
        assumed = (
            f"{1e3 * accelerator.step_s:g} ms per batch of {accelerator.batch_size} ({accelerator.source}); "
            f"gradients of ResNet-50 in fp32; {1e6 * plan.network.alpha_s:g} µs and "
            f"{1e-9 / plan.network.beta_s:g} GB/s per neighbour; loaders keep up"
        )
        found.append((scenario, assumed))
    return found


def _simulated(one: tuple[Scenario, str], counts: Sequence[int]) -> dict[str, Any]:
    scenario, assumed = one
    points = [simulate(scenario, count) for count in counts]
    alone = scenario.batch_size / scenario.step_s
    return {
        "kind": "simulated",
        **asdict(scenario),
        "assumed": assumed,
        "points": [
            {
                **asdict(p),
                "images_per_s_low": round(p.low * alone, 1),
                "images_per_s_high": round(p.high * alone, 1),
            }
            for p in points
        ],
    }


def _threads(plan: Plan, say: Say) -> dict[str, list[float]]:
    """Images/s of the loader alone by number of decoding threads."""
    config = plan.config.input
    assert plan.config.data is not None
    dataset = with_long_epochs(
        Dataset.open(plan.config.data), config.train_split, _EPOCH_STEPS * config.batch_size
    )
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
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(number),
        ]
        command += ["-m", "bench.scaling.ranks", str(job), str(out)]
        say(f"starting {number} processes with torchrun")
        log = Path(folder, "log.txt")
        with log.open("wb") as file:
            status = subprocess.run(
                command, stdout=file, stderr=file, env=_environment(plan), check=False
            ).returncode
        if status or not out.exists():
            said = Path(f"{out}.error")
            why = said.read_text() if said.exists() else _last_words(log)
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


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and "ChildFailedError" not in line]
    return (errors or lines or ["it said nothing"])[0]
