"""`python -m train compare RUN RUN…`: runs beside each other, and whether what separates them could be chance."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shard.errors import FeedlineError
from train.commands.options import require_folder, with_suffix
from train.compare.evaluations import require_comparable, shared
from train.compare.multi_label import compare_maps
from train.compare.pareto import COSTS, on_front
from train.compare.picture import draw
from train.compare.runs import FIGURES, Run, common_metric, differing, read_runs
from train.compare.significance import compare_all
from train.compare.tables import FORMATS, Comparison
from train.evaluate import METRICS
from train.plots import has_matplotlib
from train.progress import Progress

_DESCRIPTION = """Hold runs against each other: accuracy, loss, images/s, time, energy, parameters, operations; settings
that differ; and, where `python -m train eval` has judged them on the same samples, whether they differ in accuracy by
more than chance. docs/search-compare.md explains the figures."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status.

    Raises:
        FeedlineError: what is no run, or runs that were evaluated on different data.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if len(options.runs) < 2:
        parser.error("give two runs or more")
    if options.picture is not None and not has_matplotlib():
        raise FeedlineError("--picture needs matplotlib: pip install 'feedline[plot]'")
    progress = Progress(active=sys.stderr.isatty())
    found = compare([require_folder(path) for path in options.runs], options.cost, progress.update)
    print(FORMATS[options.format](found))
    if options.picture is not None:
        if draw(found, options.picture):
            print(options.picture, file=sys.stderr)
        else:
            raise FeedlineError(
                f"no picture: no run has both a {METRICS[found.metric]} and a {found.cost.label}; choose another --cost"
            )
    return 0


def compare(
    roots: Sequence[Path], cost: str = "time", progress: Callable[[str], None] = lambda text: None
) -> Comparison:
    """Compare the runs in these folders.

    Args:
        roots: two or more.
        cost: one of `COSTS`.
        progress: see `compare_maps`.

    Raises:
        FeedlineError: one is no run, they were evaluated on different data, or only some of it is multi-label.
    """
    runs = read_runs(roots)
    metric = common_metric(runs)
    common = shared(runs)
    require_comparable(runs, common)
    if not common.lacking:  # whatever each run was evaluated on while it trained, these are the same samples
        runs = [_judged(run, common.evaluated[run.name].figures, metric) for run in runs]
    evaluated = common.evaluated.items()
    return Comparison(
        runs=runs,
        metric=metric,
        differing=differing(runs),
        cost=COSTS[cost],
        front=on_front(runs, COSTS[cost]),
        shared=common,
        pairs=compare_maps({name: one.answers() for name, one in evaluated}, progress)
        if metric == "map"
        else compare_all({name: one.right() for name, one in evaluated}),
    )


def _judged(run: Run, figures: dict[str, Any], metric: str) -> Run:
    return replace(run, **{name: figures[name] for name in FIGURES[metric]})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train compare", description=_DESCRIPTION, allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders of `python -m train`, two or more")
    add("--format", choices=tuple(FORMATS), default="table", help="default: table")
    add("--cost", choices=tuple(COSTS), default="time", help="that accuracy is held against (default: time)")
    add("--picture", type=with_suffix(".png"), metavar="FILE.png", help="draw accuracy against cost")
    return parser
