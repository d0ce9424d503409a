"""The commands of `python -m shard`: build, verify, info, index, unpack, synth, diff."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

from tqdm import tqdm

from shard.build import Result, build
from shard.cli import parser
from shard.dataset import Dataset
from shard.diff import diff, text
from shard.errors import FeedlineError
from shard.foreign import index_shards
from shard.image import Policy
from shard.info import info, table
from shard.labels import SEPARATOR
from shard.plan import Settings, Subset
from shard.sources import Source, open_source
from shard.synth import synthetic
from shard.unpack import unpack
from shard.verify import verify


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    commands = {
        "build": _build, "verify": _verify, "info": _info, "index": _index,
        "unpack": _unpack, "synth": _synth, "diff": _diff,
    }  # fmt: skip
    options = parser(commands).parse_args(arguments)
    try:
        return int(options.run(options))
    except FeedlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:  # of no file: a pipe that nobody reads, or a mistake of ours
            raise
        print(f"error: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished work is kept: run the same command again to go on", file=sys.stderr)
        return 130


def _build(options: argparse.Namespace) -> int:
    if (options.executor == "dask") != (options.scheduler is not None) and options.executor is not None:
        raise FeedlineError("--executor dask and --scheduler ADDRESS go together; give both or neither")
    settings = Settings(
        seed=options.seed,
        shard_bytes=options.shard_bytes,
        images=Policy(
            check=options.check,
            on_bad=options.on_bad,
            exif=options.exif,
            keep=options.keep,
            max_side=options.max_side,
            short_side=options.short_side,
            quality=options.quality,
        ),
        subset=Subset.parse(options.subset) if options.subset else None,
        val=options.val,
    )
    source = open_source(
        options.source, options.kind, options.classes, options.splits, multi_label=options.multi_label
    )
    if source.kind == "list" and source.listed is not None and not options.multi_label:
        several = [name for name in source.listed.classes if SEPARATOR in name]
        if several:
            print(
                f"warning: {several[0]!r} is taken for the name of one class; if these are several, give --multi-label",
                file=sys.stderr,
            )
    return _run_build(
        options,
        source,
        settings,
        max_bad=options.max_bad,
        scheduler=options.scheduler,
        staging=options.staging,
    )


def _synth(options: argparse.Namespace) -> int:
    source = synthetic(
        options.samples,
        options.classes,
        val_samples=options.val_samples,
        seed=options.seed,
        size=options.size,
    )
    settings = Settings(seed=options.seed, shard_bytes=options.shard_bytes, images=Policy(check="header"))
    return _run_build(options, source, settings)


def _run_build(
    options: argparse.Namespace,
    source: Source,
    settings: Settings,
    *,
    max_bad: str = "0",
    scheduler: str | None = None,
    staging: str | None = None,
) -> int:
    began = time.monotonic()
    with _Progress("image") as progress:
        result = build(
            source,
            options.destination,
            settings,
            workers=options.workers,
            scheduler=scheduler,
            max_bad=max_bad,
            overwrite=options.overwrite,
            staging=staging,
            progress=progress,
        )
    for row in result.first_rejected:
        print(f"rejected {row['source']}: {row['reason']}", file=sys.stderr)
    if result.rejected > len(result.first_rejected):
        print(
            f"rejected {result.rejected - len(result.first_rejected)} more, see rejected.jsonl",
            file=sys.stderr,
        )
    if result.leaks:
        print(f"warning: {result.leaks} images are in several splits, see duplicates.jsonl", file=sys.stderr)
    for split, classes in result.lacking.items():
        print(f"warning: {_lacking(split, classes)}", file=sys.stderr)
    if options.json:
        print(json.dumps(dataclasses.asdict(result)))
    else:
        print(_summary(result, options.destination, time.monotonic() - began))
    return 0


def _summary(result: Result, destination: str, seconds: float) -> str:
    if result.complete_before:
        return f"{destination}: already complete, {result.packed:,} samples in {result.shards:,} shards"
    kept = f" ({result.kept_shards:,} from the run before)" if result.kept_shards else ""
    return (
        f"{destination}: {result.packed:,} samples in {result.shards:,} shards{kept}, {result.repaired:,} repaired, "
        f"{result.rejected:,} rejected, {result.duplicates:,} duplicated, {seconds:.1f} s"
    )


def _lacking(split: str, classes: list[str]) -> str:
    named = f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
    several = len(classes) > 1
    follows = "nothing can learn" if split == "train" else "no accuracy is measured for"
    return (
        f"split {split} has no image of {len(classes):,} class{'es' if several else ''} ({named}): {follows} "
        f"{'them' if several else 'it'}; add images, or mend those in rejected.jsonl, and build again with --overwrite"
    )


def _verify(options: argparse.Namespace) -> int:
    with _Progress("shard") as progress:
        problems = verify(options.dataset, decode=options.decode, jobs=options.workers, progress=progress)
    if options.json:
        print(json.dumps(problems))
    else:
        for problem in problems:
            print(problem)
        print(f"{options.dataset}: {f'{len(problems)} problems' if problems else 'sound'}")
    return 1 if problems else 0


def _info(options: argparse.Namespace) -> int:
    dataset = Dataset.open(options.dataset)
    figures = info(dataset)
    files = []
    if options.out is not None:
        from shard.page import write_page  # only here: needs matplotlib

        files = write_page(dataset, figures, options.out)
    if options.json:
        print(json.dumps({**figures, "files": [str(path) for path in files]}))
    else:
        print(table(figures))
        for path in files:
            print(f"wrote {path}")
    return 0


def _index(options: argparse.Namespace) -> int:
    with _Progress("shard") as progress:
        count = index_shards(
            options.urls, options.out, classes=options.classes, jobs=options.workers, progress=progress
        )
    print(json.dumps({"samples": count}) if options.json else f"{options.out}: {count:,} samples indexed")
    return 0


def _unpack(options: argparse.Namespace) -> int:
    with _Progress("image") as progress:
        count = unpack(
            Dataset.open(options.dataset), options.destination, splits=options.splits, progress=progress
        )
    print(json.dumps({"images": count}) if options.json else f"{options.destination}: {count:,} images")
    return 0


def _diff(options: argparse.Namespace) -> int:
    found = diff(Dataset.open(options.a), Dataset.open(options.b))
    print(json.dumps(found) if options.json else text(found, options.a, options.b))
    return 0 if found["equal"] else 1


class _Progress:
    """A bar on a terminal; in a log, a plain line every ten seconds."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._what = ""

    def __enter__(self) -> _Progress:
        self._bar = tqdm(unit=self._unit, unit_scale=True, disable=not sys.stderr.isatty())
        self._began = self._said = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._what, self._began = what, time.monotonic()
            self._bar.reset(total)
            self._bar.set_description(what)
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= 10:
            rate = done / (now - self._began) if now > self._began else 0.0
            left = f"{(total - done) / rate:.0f} s left" if rate else "just begun"
            print(f"{what}: {done:,} of {total:,}, {rate:,.0f}/s, {left}", file=sys.stderr)
            self._said = now
