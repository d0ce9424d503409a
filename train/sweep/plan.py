"""What a study is: the trainings' flags, the search space, and what is optimised. Kept in STUDY/study.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.cli import UsageError, flag_names, parse
from train.config import Config, differences, from_dict, to_dict
from train.distributed import World
from train.labels import fitted
from train.plan import check
from train.settle import settled
from train.sweep.space import Dimension, Value, parse_search, require_free
from train.whole import whole

Metric = Literal["top1", "top5", "map", "loss"]
Prune = Literal["median", "halving", "none"]
UNITS: dict[Metric, str] = {"top1": "top-1 %", "top5": "top-5 %", "map": "mAP %", "loss": "loss"}
FORMAT = 1
_MINE = (
    "run-dir",
    "resume",
    "check",
    "dry-run",
    "find-batch-size",
    "memory-gib",
    "list-recipes",
    "synthetic",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is searched.

    Attributes:
        flags: of every trial's training.
        space: the searched ones.
        metric: of the evaluations; loss is minimised, the others maximised.
        prune: how trials without prospects are ended early.
    """

    flags: tuple[str, ...]
    space: tuple[Dimension, ...]
    metric: Metric = "top1"
    prune: Prune = "median"

    def __post_init__(self) -> None:
        """Reject flags that a study sets itself, and what is searched and given."""
        for word in self.flags:
            name = word.partition("=")[0].replace("_", "-")
            if name.startswith("--") and name[2:] in _MINE:
                raise FeedlineError(
                    f"{name} makes no sense in a sweep, whose trials are whole trainings; leave it out"
                )
        require_free(self.space, self.flags)

    def trial_flags(self, values: dict[str, Value]) -> list[str]:
        """Command line of a training with these values, without its run folder."""
        return [*self.flags, *(word for one in self.space for word in one.words(values[one.flag]))]

    @property
    def maximised(self) -> bool:
        """Whether larger is better."""
        return self.metric != "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A plan without mistakes.

    Attributes:
        plan: of which it is.
        config: of a training at one corner of the space.
        fingerprint: of the dataset.
    """

    plan: Plan
    config: Config
    fingerprint: str


def check_plan(plan: Plan, *, metric_given: bool = True) -> Checked:
    """Do what `python -m train --check` does with the extremes of every range, and with every choice once.

    Args:
        plan: to be checked.
        metric_given: whether its metric was asked for; if not, it becomes the one that decides on the dataset.

    Raises:
        FeedlineError: the first mistake, with the flags that make it.
    """
    configs: list[Config] = []
    for corner in range(max(one.corners for one in plan.space)):
        values = {one.flag: one.corner(corner) for one in plan.space}
        flags = plan.trial_flags(values)
        try:
            options = parse(flags)
            config = options.settings
            assert config.data is not None  # parse() sees to it
            dataset = Dataset.open(config.data)
            config = fitted(config, dataset, options.given)
            check(settled(config, None, options.given), dataset, World())
        except (UsageError, FeedlineError) as error:
            searched = " ".join(flags[len(plan.flags) :])
            raise FeedlineError(f"a trial could not run, with {searched}: {error}") from error
        configs.append(config)
    if not metric_given:
        plan = replace(plan, metric="map" if dataset.multi_label else "top1")
    _require_metric(plan.metric, dataset)
    return Checked(plan=plan, config=configs[0], fingerprint=dataset.fingerprint)


def _require_metric(metric: Metric, dataset: Dataset) -> None:
    there = ("map", "loss") if dataset.multi_label else ("top1", "top5", "loss")
    if metric not in there:
        kind = "multi-label" if dataset.multi_label else "not multi-label"
        raise FeedlineError(f"--metric is {metric}, but {dataset.root} is {kind}; use {' or '.join(there)}")


def save_plan(checked: Checked, path: Path) -> None:
    """Write study.json, whole or not at all."""
    plan = checked.plan
    values = {
        "format": FORMAT,
        "flags": plan.flags,
        "search": [str(one) for one in plan.space],
        "metric": plan.metric,
        "prune": plan.prune,
        "fingerprint": checked.fingerprint,
        "config": to_dict(checked.config),
    }
    with whole(path) as aside:
        aside.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def load_plan(path: Path) -> Checked:
    """Read study.json.

    Raises:
        FeedlineError: missing, or none of ours.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FeedlineError(
            f"{path.parent} is no study ({path}: {error.strerror}); give one of `sweep`"
        ) from error
    except ValueError as error:
        raise FeedlineError(f"{path} is damaged: {error}; give another --study") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise FeedlineError(f"{path} is not of a study of format {FORMAT}; give another --study")
    try:
        plan = Plan(
            flags=tuple(values["flags"]),
            space=parse_search(values["search"], flag_names()),
            metric=cast(Metric, values["metric"]),
            prune=cast(Prune, values["prune"]),
        )
        config = from_dict(Config, values["config"], str(path))
        return Checked(plan=plan, config=config, fingerprint=values["fingerprint"])
    except (KeyError, TypeError) as error:
        raise FeedlineError(f"{path} is damaged: {error!r}; give another --study") from error


def require_same(saved: Checked, now: Checked, root: Path) -> None:
    """Refuse to go on with another search in the study at `root`; --trials and --workers are free.

    Raises:
        FeedlineError: names all that differs.
    """
    before, after = ({one.flag: str(one) for one in c.plan.space} for c in (saved, now))
    changed = [
        f"--search {before.get(flag, f'{flag} was not there')} → {after.get(flag, 'not there')}"
        for flag in sorted(before.keys() | after.keys())
        if before.get(flag) != after.get(flag)
    ]
    for name in ("metric", "prune"):
        was, now_is = getattr(saved.plan, name), getattr(now.plan, name)
        if was != now_is:
            changed.append(f"--{name} {was} → {now_is}")
    if saved.fingerprint != now.fingerprint:
        changed.append("--data is another dataset")
    if before == after:  # else the corners differ, and with them the configurations
        for text in differences(saved.config, now.config):
            key, _, values = text.partition(": ")
            changed.append(f"--{key.replace('_', '-')} {values}")
    if changed:
        raise FeedlineError(
            f"{root} holds a study of something else ({'; '.join(changed)}); give its own flags, or another --study"
        )


def worth(metric: Metric, value: float) -> str:
    """A value of the metric for people: "top-1 97.22 %", "loss 0.1234"."""
    name, _, unit = UNITS[metric].partition(" ")
    return f"{name} {value:.4g} {unit}".rstrip()
