"""The build: look, plan, pack in parallel, and only then show a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shard.apart import refuse_overlap
from shard.dataset import MANIFEST, Dataset, Split, read_split
from shard.duplicates import find_duplicates
from shard.errors import FeedlineError
from shard.execute import Workers, start_workers
from shard.holdout import hold_out
from shard.index import DUPLICATES, REJECTED, REPAIRED, SplitSummary, write_lines, write_manifest, write_split
from shard.items import Listing
from shard.limit import allowed_bad, check_bad
from shard.names import readable
from shard.pack import Packer, Record, record_name
from shard.places import (
    SPLIT_NAME,
    Places,
    begin_plan,
    forget_spooled,
    locked,
    removal_begun,
    remove_earlier,
    require_ours,
    same_plan,
)
from shard.plan import Settings, ShardJob, SplitPlan, all_jobs, fingerprint, plan, take_subset
from shard.sources import Source, open_source
from shard.storage import is_remote, names_in, remove_tree, storage_errors, write_whole

Progress = Callable[
    [str, int, int], None
]  # what is done, how much of it is, and how much there is in this run


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a build did.

    Attributes:
        packed: samples in the dataset.
        repaired: images that were changed.
        rejected: rows of rejected.jsonl, as a count.
        first_rejected: the first of them.
        duplicates: groups of equal images; `leaks` of them lie in several splits.
        leaks: see there.
        kept_shards: shards that an earlier, interrupted run had finished.
        shards: shards in all.
        lacking: by split, names of the classes that it has no image of and another split has.
        complete_before: the dataset was already there and nothing was done.
    """

    packed: int
    repaired: int
    rejected: int
    first_rejected: list[dict[str, str]]
    duplicates: int
    leaks: int
    kept_shards: int
    shards: int
    lacking: dict[str, list[str]]
    complete_before: bool = False


def build(
    source: str | Path | Source,
    destination: str | Path,
    settings: Settings | None = None,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    max_bad: str = "1%",
    overwrite: bool = False,
    staging: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Result:
    """Pack images into a dataset; a build that was killed goes on where it stopped.

    Args:
        source: what `shard.sources.open_source` takes, or its result.
        destination: folder or fsspec URL for the dataset; made if missing.
        settings: what decides its content.
        workers: processes; None: one more than cores. Does not change a single byte of the result.
        scheduler: address of a Dask scheduler to work on instead; all its machines must reach source and destination.
        max_bad: rejected images allowed, a count or a percentage of all; `Listing.lost` count, too.
        overwrite: remove an earlier dataset or unfinished build in `destination`, once the new one is planned.
        staging: local folder for files under way to a URL; None: one below the system's temporary folder.
        progress: called as the work goes on.

    Raises:
        FeedlineError: with one line that says what is wrong and what to do.
    """
    settings = settings or Settings()
    if settings.shard_bytes < 1:
        raise FeedlineError(f"shard_bytes is {settings.shard_bytes}; it must be at least 1")
    allowed_bad(max_bad, 0)
    places = Places.of(destination, staging)
    opened = source if isinstance(source, Source) else open_source(str(source))
    refuse_overlap(opened, places.target)
    identity = fingerprint(opened.stamp(times=False), settings)
    with locked(places), ExitStack() as refused:
        if overwrite:
            require_ours(places.target)
            forget_spooled(places)
            refused.callback(forget_spooled, places)  # what is there stays as it is
        elif (places.target / MANIFEST).exists():
            return _already_complete(places, identity)
        plan_identity = fingerprint(opened.stamp(times=True), settings)
        if not overwrite:
            same_plan(places, plan_identity)
        with start_workers(workers, scheduler) as pool:
            listing, plans, lost = _look(opened, settings, max_bad, places.staging, pool, progress)
            allowed = allowed_bad(max_bad, len(lost) + sum(len(one.order) for one in plans))
            # Only now: whatever is wrong with source and settings has been said.
            if overwrite or removal_begun(places):
                remove_earlier(places)
            refused.pop_all()
            begin_plan(places, plan_identity, listing.splits)
            kept = _pack(plans, listing, settings, places, pool, lost, allowed, progress)
        result = _finish(plans, listing, settings, identity, places, kept)
        remove_tree(places.records)
        remove_tree(places.staging)
    return result


def _already_complete(places: Places, identity: str) -> Result:
    dataset = Dataset.open(places.target)
    if dataset.manifest.get("source") != identity:
        raise FeedlineError(
            f"{places.target} holds a finished dataset of another source or other settings; "
            "use --overwrite to replace it, or choose another folder"
        )
    remove_tree(places.records)  # a build killed between its last two steps leaves it
    remove_tree(places.staging)
    splits = dataset.manifest["splits"].values()
    shards = sum(len(s["shards"]) for s in splits)
    with storage_errors("read", places.target / REJECTED):
        rejected = [json.loads(line) for line in (places.target / REJECTED).read_text().splitlines()]
    return Result(
        packed=sum(s["samples"] for s in splits),
        repaired=sum(s["repaired"] for s in splits),
        rejected=len(rejected),
        first_rejected=rejected[:10],
        duplicates=dataset.manifest["duplicates"]["groups"],
        leaks=dataset.manifest["duplicates"]["across_splits"],
        kept_shards=shards,
        shards=shards,
        lacking=_lacking(dataset.classes, {name: dataset.split(name) for name in dataset.split_names}),
        complete_before=True,
    )


def _look(
    source: Source, settings: Settings, max_bad: str, staging: Path, pool: Workers, progress: Progress
) -> tuple[Listing, list[SplitPlan], list[dict[str, str]]]:
    """List the samples, and decide where each goes; returns, too, what of them is lost already."""
    listing = _list(source, staging, pool, progress)
    lost = listing.lost
    check_bad(lost, allowed_bad(max_bad, len(lost) + sum(map(len, listing.splits.values()))))
    if settings.val is not None:
        hold_out(listing, settings.val, settings.seed)
    if settings.subset is not None:
        take_subset(listing, settings.subset)
        lost = []  # they are of the whole, and not of the part
    listing.readable = listing.readable or readable(listing.classes)
    return listing, plan(listing, settings), lost


def _list(source: Source, staging: Path, pool: Workers, progress: Progress) -> Listing:
    def run(function: Callable[..., Any], inputs: Any) -> Iterator[Any]:
        for done, found in enumerate(pool.ordered(function, inputs, [staging] * len(inputs)), start=1):
            progress("reading files", done, len(inputs))
            yield found

    listing = source.listing(run)
    for split in listing.splits:
        if not SPLIT_NAME.fullmatch(split):
            raise FeedlineError(f"split is named {split!r}; use letters, digits, - and _")
    return listing


def _pack(
    plans: list[SplitPlan],
    listing: Listing,
    settings: Settings,
    places: Places,
    pool: Workers,
    lost: list[dict[str, str]],
    allowed: int,
    progress: Progress,
) -> int:
    """Write the shards that are not there yet; returns how many were."""
    for one in plans:
        if not is_remote(places.target):
            (places.target / one.split).mkdir(exist_ok=True)
    there = names_in(places.records)
    todo: list[tuple[SplitPlan, int]] = []
    bad = list(lost)
    for one, number in all_jobs(plans):
        if record_name(one.split, one.name(number)) not in there:
            todo.append((one, number))
            continue
        bad += _record(places, one, number).rejected
    check_bad(bad, allowed)
    packer = Packer(
        listing.reader, listing.classes, settings.images, places.target, places.records, places.staging
    )
    total, done = sum(one.images(number) for one, number in todo), 0
    jobs: Iterator[tuple[int, Callable[[], ShardJob]]] = (
        (one.images(number), partial(one.job, number)) for one, number in todo
    )
    for images, outcome in pool.unordered(packer, jobs):
        bad += outcome.rejected
        done += images
        progress("packing images", done, total)
        check_bad(bad, allowed)
    return sum(map(len, plans)) - len(todo)


def _record(places: Places, one: SplitPlan, number: int) -> Record:
    path = places.records / record_name(one.split, one.name(number))
    with storage_errors("read", path):
        return Record.from_json(path.read_text())


def _finish(
    plans: list[SplitPlan], listing: Listing, settings: Settings, identity: str, places: Places, kept: int
) -> Result:
    """Write what lies beside the shards."""
    target, staging = places.target, places.staging
    summaries = _write_splits(plans, listing, places)
    several = len(listing.classes) if listing.multi_label else None
    splits = {name: read_split(target / name, one.shards, several) for name, one in summaries.items()}
    duplicates = list(find_duplicates(splits, {name: bytes(one.digests) for name, one in summaries.items()}))
    with write_whole(target / DUPLICATES, staging) as file:
        write_lines(file, duplicates)
    leaks = sum(row["across_splits"] for row in duplicates)
    about = {
        "source": identity,
        "source_kind": listing.kind,
        "settings": asdict(settings),
        "classes": list(listing.classes),
        "class_names": list(listing.readable),
        **({"multi_label": True} if listing.multi_label else {}),  # others stay what they were, byte for byte
        "duplicates": {
            "groups": len(duplicates),
            "across_splits": leaks,
            "labels_differ": sum(row["labels_differ"] for row in duplicates),
        },
    }
    write_manifest(target, staging, about, summaries)
    with storage_errors("read", target / REJECTED), (target / REJECTED).open("rb") as lines:
        first = [json.loads(line) for line, _ in zip(lines, range(10), strict=False)]
    return Result(
        packed=sum(one.samples for one in summaries.values()),
        repaired=sum(one.repaired for one in summaries.values()),
        rejected=sum(one.rejected for one in summaries.values()) + len(listing.ignored),
        first_rejected=first,
        duplicates=len(duplicates),
        leaks=leaks,
        kept_shards=kept,
        shards=sum(len(one.shards) for one in summaries.values()),
        lacking=_lacking(listing.classes, splits),
    )


def _lacking(classes: tuple[str, ...], splits: dict[str, Split]) -> dict[str, list[str]]:
    """See `Result.lacking`; of what was packed, since a class may have lost its images to the check."""
    has = {name: split.class_counts(len(classes)) > 0 for name, split in splits.items()}
    anywhere = np.any(list(has.values()), axis=0)
    missing = {name: np.flatnonzero(anywhere & ~here).tolist() for name, here in has.items()}
    return {name: [classes[c] for c in found] for name, found in missing.items() if found}


def _write_splits(plans: list[SplitPlan], listing: Listing, places: Places) -> dict[str, SplitSummary]:
    """Write the indexes, and the lists of what was rejected and repaired."""
    target, staging = places.target, places.staging
    summaries: dict[str, SplitSummary] = {}
    with ExitStack() as stack:
        rejected, repaired = (
            stack.enter_context(write_whole(target / name, staging)) for name in (REJECTED, REPAIRED)
        )
        write_lines(rejected, sorted(listing.ignored, key=lambda row: (row["split"], row["source"])))
        for one in plans:
            records = (_record(places, one, number) for number in range(len(one)))
            summary = write_split(
                target / one.split, records, staging, rejected, repaired, multi_label=listing.multi_label
            )
            if not summary.samples:
                raise FeedlineError(f"split {one.split} has no image left after checking; see --max-bad")
            summaries[one.split] = summary
    return summaries
