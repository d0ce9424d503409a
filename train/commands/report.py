"""`python -m train report RUN`: a run as one HTML page."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.checkpoint import DamagedError
from train.commands import eval as evaluation
from train.commands.options import require_folder, with_suffix
from train.report.judged import Judged, find_judged
from train.report.page import MOST_MISTAKES, page
from train.report.record import Record, read_record
from train.run_folder import RunFolder, read_if_there
from train.whole import whole

_DESCRIPTION = """Write a run as one HTML page that needs nothing else: how good it is, how it learnt, what it confuses,
and its worst mistakes. The run's best checkpoint is evaluated first, as `python -m train eval RUN` does,
unless that has been done. docs/after.md says more."""
_MISSING = "There are no figures by class and no mistakes, because "


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise FeedlineError("report is one process: leave torchrun out (eval is for many)")
    record = read_record(require_folder(options.run))
    notes: list[str] = []
    judged = find_judged(record, MOST_MISTAKES) if record.best else None  # of none the headline tells
    dataset = _dataset(record, judged, options.data, notes)
    if judged is None and dataset is not None and _is_another(dataset, record):
        if record.best:
            notes.append(_MISSING + _why(record, options.data))
        dataset = None  # its images are not those that the run was trained on
    elif judged is None and record.best:
        judged = _evaluated(record, options.data, notes)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    out = options.out or options.run / "report.html"
    with whole(out) as aside:
        aside.write_text(page(record, judged, dataset, notes), encoding="utf-8")
    print(f"page: {out}")
    return 0


def _is_another(dataset: Dataset, record: Record) -> bool:
    """Whether the run was trained on something else, as far as is known: an evaluation on this would not count."""
    run = RunFolder(record.root)
    content = read_if_there(run.best)
    if content is None:
        with suppress(DamagedError):  # that is for the training to say, when it goes on
            content = read_if_there(run.last)
    content = content or {}
    return bool(content.get("fingerprint", dataset.fingerprint) != dataset.fingerprint)


def _why(record: Record, data: str | None) -> str:
    if data is not None:
        return f"{data} is another dataset than the run's."
    return (
        f"{record.config.data} is no longer what the run was trained on: give --data with a copy of what it was "
        "(`python -m train eval` judges the run on what it is now)."
    )


def _evaluated(record: Record, data: str | None, notes: list[str]) -> Judged | None:
    """An evaluation of the best checkpoint, made now; None if it cannot be made, which `notes` tell."""
    print("no evaluation of the best checkpoint yet: evaluating", file=sys.stderr)
    try:
        evaluation.main([str(record.root), *(["--data", data] if data else [])])
    except FeedlineError as error:
        notes.append(f"{_MISSING}the run could not be evaluated: {error}")
        return None
    judged = find_judged(record, MOST_MISTAKES)
    if judged is None:
        notes.append(f"{_MISSING}the run has saved another best checkpoint meanwhile: report again.")
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
