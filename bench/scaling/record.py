"""The record of a scaling measurement: what was measured, the law through it, and what was not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from bench.intervals import median_interval, ratio_interval
from bench.scaling.law import extrapolate, extremes, fit, speedups
from bench.scaling.network import Measured, Network, Scenario, fit_network, simulate, worst_error
from bench.scaling.plan import Plan
from train.config import to_dict
from train.environment import environment

RESNET50_BYTES = 25_557_032 * 4  # parameters of ResNet-50 with 1,000 classes, gradients in fp32


def make_record(plan: Plan, measured: dict[str, Any], page_cache: str) -> dict[str, Any]:
    """Fit, extrapolate and simulate what was measured; see `measure_ranks` and `page_cache.state`."""
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
            "page_cache": page_cache,
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
