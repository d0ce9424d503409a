"""`python -m train report RUN`: a run as one HTML page."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.commands import eval as evaluation
from train.commands.options import require_folder, with_suffix
from train.report.judged import Judged, find_judged
from train.report.page import MOST_MISTAKES, page
from train.report.record import Record, read_record
from train.whole import whole

_DESCRIPTION = """Write a run as one HTML page that needs nothing else: how good it is, how it learnt, what it confuses,
and its worst mistakes. The run's best checkpoint is evaluated first, as `python -m train eval RUN` does,
unless that has been done. docs/after.md says more."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise FeedlineError("report is one process: leave torchrun out (eval is for many)")
    record = read_record(require_folder(options.run))
    notes: list[str] = []
    judged = _judged(record, options.data, notes)
    dataset = _dataset(record, judged, options.data, notes)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    out = options.out or options.run / "report.html"
    with whole(out) as aside:
        aside.write_text(page(record, judged, dataset, notes), encoding="utf-8")
    print(f"page: {out}")
    return 0


def _judged(record: Record, data: str | None, notes: list[str]) -> Judged | None:
    """The evaluation of the best checkpoint, made if there is none; None if it cannot be made, which `notes` tell."""
    if record.best is None:
        return None  # the headline tells
    judged = find_judged(record, MOST_MISTAKES)
    if judged is not None:
        return judged
    print("no evaluation of the best checkpoint yet: evaluating", file=sys.stderr)
    try:
        evaluation.main([str(record.root), *(["--data", data] if data else [])])
    except FeedlineError as error:
        notes.append(
            f"There are no figures by class and no mistakes, because the run could not be evaluated: {error}"
        )
        return None
    judged = find_judged(record, MOST_MISTAKES)
    if judged is None:
        notes.append(
            f"There are no figures by class and no mistakes, because {data} is another dataset than the run's."
        )
    return judged


def _dataset(record: Record, judged: Judged | None, data: str | None, notes: list[str]) -> Dataset | None:
    """The dataset that was judged; None if it is not there any more, which `notes` tell."""
    source = data or (str(judged.figures["data"]) if judged else record.config.data)
    if source is None:
        return None
    try:
        return Dataset.open(source)
    except FeedlineError as error:
        if judged is not None:
            notes.append(f"The mistakes are shown without their images, because the dataset is gone: {error}")
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train report", description=_DESCRIPTION, allow_abbrev=False
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder of `python -m train`")
    add("--out", type=with_suffix(".html"), metavar="FILE.html", help="the page (default: RUN/report.html)")
    add("--data", metavar="DATASET", help="dataset folder or URL, if it has moved")
    return parser
