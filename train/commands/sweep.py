"""`python -m train sweep`: search for settings by trials, which are ordinary trainings."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shard.errors import FeedlineError
from train.cli import flag_names
from train.commands.options import positive
from train.plots import has_matplotlib
from train.stop import Stopped

if TYPE_CHECKING:
    from train.sweep.study import Study

_DESCRIPTION = """Search for settings. All other flags are those of `python -m train`, and hold for all trials:

  python -m train sweep --data DATASET --recipe digits \\
      --search 'lr=log(1e-3,1) weight-decay=log(1e-6,1e-2) batch-size=choice(32,64,128)' --trials 20 --workers 2

Each trial is a training with a run folder in the study folder. Ctrl-C stops in good order; the same command goes on,
also on other machines and terminals at the same time. docs/search-compare.md says more."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status: 1 if no trial could be finished.

    Raises:
        FeedlineError: a mistake in the flags, or a study of something else.
    """
    parser = _parser()
    options, flags = parser.parse_known_args(argv)
    if importlib.util.find_spec("optuna") is None:
        raise FeedlineError("sweep needs Optuna: pip install 'feedline[sweep]'")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise FeedlineError("sweep is one process: leave torchrun out, and give --workers")
    if options.show is not None:
        if flags or options.search:
            parser.error("--show STUDY takes no other flags")
        return _shown(_existing(options.show))
    if not options.search:
        parser.error("--search is missing: what to search, such as --search 'lr=log(1e-4,1)'")
    return _search(options, flags)


def _search(options: argparse.Namespace, flags: list[str]) -> int:
    """Work on the study, then show it."""
    from optuna.exceptions import StorageInternalError

    from train.sweep.loop import Sweep
    from train.sweep.plan import Plan, check_plan
    from train.sweep.process import Training
    from train.sweep.space import parse_search
    from train.sweep.study import DATABASE, Study, settle

    space = parse_search(options.search, flag_names())
    plan = Plan(flags=tuple(flags), space=space, metric=options.metric or "top1", prune=options.prune)
    checked = check_plan(plan, metric_given=options.metric is not None)
    root = options.study or Path("sweeps") / checked.config.recipe
    settle(root, checked)
    study = Study(root, checked.plan, checked.config.seed)
    start = partial(Training, workers=options.workers)
    try:
        Sweep(study, start, workers=options.workers, trials=options.trials, say=_say).run()
    except Stopped as stopped:
        _say("stopped; the same command goes on")
        return stopped.status
    except StorageInternalError as error:
        raise FeedlineError(
            f"{root / DATABASE} cannot be used any more: {error.__cause__ or error}"
        ) from error
    return _shown(study)


def _existing(root: Path) -> Study:
    from train.sweep.plan import load_plan
    from train.sweep.study import PLAN, Study

    return Study(root, load_plan(root / PLAN).plan)


def _shown(study: Study) -> int:
    """Print the table and draw the pictures."""
    from train.sweep.table import report

    print(report(study))
    if has_matplotlib():
        from train.sweep.picture import draw

        paths, missing = draw(study)
        for path in paths:
            print(path)
        if missing:
            _say(missing)
    else:
        _say("pictures are left out: they need matplotlib: pip install 'feedline[plot]'")
    return 0 if study.best is not None or study.unfinished() else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train sweep",
        description=_DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--search",
        nargs="+",
        action="extend",
        metavar="FLAG=RANGE",
        help="log(a,b), uniform(a,b), int(a,b[,step]) or choice(a,b,…) of any flag of the training; quote it, or write "
        "lr=log:1e-4,1",
    )
    add("--trials", type=positive, default=20, metavar="N", help="that the study has in all (default: 20)")
    add("--workers", type=positive, default=1, metavar="N", help="trials at a time, here (default: 1)")
    add("--study", type=Path, metavar="DIR", help="study folder (default: sweeps/RECIPE)")
    add(
        "--metric",
        choices=("top1", "top5", "map", "loss"),
        help="of the evaluation after each epoch; a trial counts by its best one (default: top1, of multi-label "
        "datasets map)",
    )
    add(
        "--prune",
        choices=("median", "halving", "none"),
        default="median",
        help="end trials early that are worse than the median of the others at that epoch, or by successive halving "
        "(default: median)",
    )
    add("--show", type=Path, metavar="STUDY", help="print table and pictures of a study, and train nothing")
    return parser
