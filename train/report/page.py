"""The report of a run as HTML."""

from __future__ import annotations

import datetime

from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.page import template
from train.report import class_tables, figures
from train.report.confusion import heat_map
from train.report.headline import facts, headline
from train.report.judged import Judged, class_names
from train.report.pictures import thumbnails
from train.report.record import Record

MOST_MISTAKES = 24


def page(record: Record, judged: Judged | None, dataset: Dataset | None, notes: list[str]) -> str:
    """The page.

    Args:
        record: the run.
        judged: its evaluation, if there is one.
        dataset: that it was judged on, if it is still there.
        notes: what is missing from the page, and why.
    """
    notes = list(notes)
    names = class_names(judged.classes, dataset) if judged else []
    pictures: list[str] = []
    if judged and dataset and judged.mistakes:
        about = judged.figures
        try:
            pictures = thumbnails(
                dataset, about["split"], about["fingerprint"], [one.id for one in judged.mistakes]
            )
        except FeedlineError as error:
            notes.append(f"The mistakes are shown without their images: {error}.")
    # The same dataset built again may have other images than those that the run was trained on.
    same = dataset and (not judged or dataset.fingerprint == judged.figures["fingerprint"])
    return template("train", "run.html").render(
        title=f"{record.root.resolve().name}: {record.config.model.arch}",
        headline=headline(record, judged, dataset if same else None),
        facts=facts(record, judged),
        notes=notes,
        curves=figures.curves(record),
        speed=figures.speed(record),
        phases=figures.phases(record),
        judged=judged,
        names=names,
        # Of a multi-label run there is no confusion and no single confidence.
        heat=heat_map(judged.matrix, names) if judged and judged.matrix is not None else None,
        calibration=figures.calibration(judged) if judged and judged.matrix is not None else None,
        sizes=figures.sizes(judged) if judged and judged.matrix is not None else None,
        classes=class_tables.by_class(judged, names) if judged else None,
        averages=class_tables.averages(judged) if judged else None,
        untested=sum(not scores["support"] for scores in judged.figures["classes"].values()) if judged else 0,
        pictures=pictures,
        history=figures.history(record),
        bad=figures.bad_samples(record),
        settings=figures.settings(record),
        environment=figures.environment(record),
        made=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )
