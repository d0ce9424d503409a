"""`python -m bench accelerator`: measure emulated accelerators, and find how many of them this node feeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

import torch

from bench.accelerator import PASS, Accelerator, feeds, predicted, rate, step_seconds, utilisation
from bench.accelerator_ranks import Feeding, Ranks
from bench.intervals import Interval, median_interval
from bench.long_epochs import with_long_epochs
from bench.page_cache import state
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.config import Config, to_dict
from train.environment import environment

Say = Callable[[str], None]
_CHECK_BATCH, _CHECK_S, _CHECK_PREFETCH = 32, 1.5, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        config: gives data, split, transform and backend; its batch size is not used.
        name: of the accelerator.
        accelerator: what it does.
        accelerators: how many of them are asked about.
        most: greatest number that is tried.
        search: find how many are fed.
        ratios: demands to check the emulation with, as multiples of what the loader gives; see `_check`.
        held: images/s to which the loader is held back for that; None: what it gives is measured.
        threads: decoding threads of each loader; None: its share of the cores.
        prefetch: batches that each loader prepares ahead.
        blocking: see `bench.accelerator.emulate`.
        repeats: of every measurement.
        seconds: of each, at least.
    """

    config: Config
    name: str
    accelerator: Accelerator
    accelerators: int = 1
    most: int = 16
    search: bool = True
    ratios: tuple[float, ...] = ()
    held: float | None = None
    threads: int | None = None
    prefetch: int = 4
    blocking: bool = False
    repeats: int = 3
    seconds: float = 5.0


def accelerator(plan: Plan, say: Say) -> dict[str, Any]:
    """Measure, and return the record; JSON-able.

    Raises:
        FeedlineError: the dataset or a loader fails.
    """
    measured: dict[int, dict[str, Any]] = {}

    def point(number: int) -> dict[str, Any]:
        if number not in measured:
            measured[number] = _point(plan, number, say)
        return measured[number]

    split = _dataset(plan.config).split(plan.config.input.train_split)
    asked = point(plan.accelerators)
    estimate = feeds(median(asked["loader_images_per_s"]), plan.accelerator)
    fed, at_least = (
        _search(lambda n: bool(point(n)["passed"]), estimate, plan.most) if plan.search else (None, False)
    )
    return {
        "benchmark": "accelerator",
        "environment": environment(torch.device("cpu")),
        "settings": {
            "dataset": plan.config.data,
            "page_cache": state(sum(split.shard_bytes)),
            "repeats": plan.repeats,
            "seconds": plan.seconds,
            "threads": plan.threads,
            "prefetch": plan.prefetch,
            "blocking": plan.blocking,
            "pass": PASS,
            "check_held_images_per_s": plan.held,
            "config": to_dict(plan.config),
        },
        "accelerator": {"name": plan.name, **asdict(plan.accelerator), "demand": plan.accelerator.demand},
        "accelerators": plan.accelerators,
        "estimate": estimate,
        "feeds": fed,
        "feeds_at_least": at_least,
        "points": [measured[number] for number in sorted(measured)],
        "check": _check(plan, say) if plan.ratios else [],
    }


def _search(passes: Callable[[int], bool], estimate: int, most: int) -> tuple[int, bool]:
    """Greatest number that passes, from an estimate; and whether it was the greatest that may be tried.

    Every answer is measured: the number passes, and one more does not.
    """
    number = min(max(estimate, 1), most)
    if passes(number):
        while number < most and passes(number + 1):
            number += 1
        return number, number == most
    while number > 0 and not passes(number):
        number -= 1
    return number, False


def _point(plan: Plan, number: int, say: Say) -> dict[str, Any]:
    """Measure `number` accelerators, and in turn with them what their loaders give without them."""
    au: list[float] = []
    images_per_s: list[float] = []
    step_s: list[float] = []
    free: list[float] = []
    with Ranks(_feeding(plan, number, plan.accelerator.batch_size), number) as ranks:
        say(f"{number} × {plan.name}: starting")
        ranks.run(plan.accelerator.step_s, min(plan.seconds, 1.0))
        for repeat in range(plan.repeats):
            say(f"{number} × {plan.name}: repeat {repeat + 1} of {plan.repeats}")
            timings = ranks.run(plan.accelerator.step_s, plan.seconds)
            au.append(round(utilisation(timings), 4))
            images_per_s.append(round(rate(timings), 1))
            step_s.append(round(step_seconds(timings), 5))
            free.append(round(rate(ranks.run(0.0, plan.seconds)), 1))
    interval = median_interval(au)
    return {
        "accelerators": number,
        "demand": round(number * plan.accelerator.demand, 1),
        "au": au,
        "au_interval": asdict(interval),
        "images_per_s": images_per_s,
        "step_s": step_s,
        "loader_images_per_s": free,
        "predicted_au": round(predicted(median(free), number * plan.accelerator.demand), 4),
        "passed": interval.value >= PASS,
    }


def _check(plan: Plan, say: Say) -> list[dict[str, Any]]:
    """Compare AU with min(1, X ÷ demand), for accelerators that want multiples of what the loader gives.

    What it gives, X, is the rate that it is held back to, or else is measured right before and right after each of
    them: on a shared machine it changes.
    """
    # Many short measurements, close to each other in time.
    batch_size = min(plan.accelerator.batch_size, _CHECK_BATCH)
    seconds = min(plan.seconds, _CHECK_S)
    feeding = replace(_feeding(plan, 1, batch_size), prefetch=min(plan.prefetch, _CHECK_PREFETCH))
    found: dict[float, list[dict[str, float]]] = {ratio: [] for ratio in plan.ratios}
    with Ranks(feeding, 1) as ranks:
        say("checking the emulation: starting")
        ranks.run(0.0, seconds)
        for repeat in range(plan.repeats):
            say(f"checking the emulation: repeat {repeat + 1} of {plan.repeats}")
            before = plan.held or rate(ranks.run(0.0, seconds))
            for i in range(len(plan.ratios)):
                ratio = plan.ratios[(i + repeat) % len(plan.ratios)]
                one = replace(plan.accelerator, batch_size=batch_size, step_s=batch_size / (ratio * before))
                timings = ranks.run(one.step_s, seconds, plan.held)
                after = plan.held or rate(ranks.run(0.0, seconds))
                given, au = fmean((before, after)), utilisation(timings)
                found[ratio].append(
                    {
                        "loader_images_per_s": round(given, 1),
                        "demand": round(one.demand, 1),
                        "au": round(au, 4),
                        "predicted": round(predicted(given, one.demand), 4),
                    }
                )
                before = after
    return [_checked(ratio, repeats) for ratio, repeats in found.items()]


def _checked(ratio: float, repeats: Sequence[dict[str, float]]) -> dict[str, Any]:
    points: Interval = median_interval([100 * (one["au"] - one["predicted"]) for one in repeats])
    return {
        "demand_over_loader": ratio,
        "repeats": list(repeats),
        "au": median(one["au"] for one in repeats),
        "predicted": median(one["predicted"] for one in repeats),
        "difference_points": asdict(points),
    }


def _feeding(plan: Plan, number: int, batch_size: int) -> Feeding:
    config, dataset = plan.config, _dataset(plan.config)
    split = config.input.train_split
    return Feeding(
        dataset=with_long_epochs(dataset, split, number * batch_size),
        split=split,
        transform=config.input.train_transform(),
        batch_size=batch_size,
        backend=config.input.loader_backend,
        threads=plan.threads,
        prefetch=plan.prefetch,
        blocking=plan.blocking,
    )


def _dataset(config: Config) -> Dataset:
    if config.data is None:
        raise FeedlineError("data is missing; give --data DATASET")
    return Dataset.open(config.data)
