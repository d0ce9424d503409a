"""Command line: python -m shard build | verify | info."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time

from tqdm import tqdm

from shard.build import Result, build
from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.info import info, table
from shard.plan import Settings
from shard.verify import verify

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except FeedlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished shards are kept: run the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shard", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "build",
        help="pack a folder of images into a dataset",
        description="Pack class folders of images into verified WebDataset shards. Every image is decoded once; "
        "what does not decode is left out and named in rejected.jsonl. A build that was killed goes on where it "
        "stopped when the same command is given again.",
    )
    command.add_argument(
        "source", metavar="SRC", help="class folders, or a folder with train/ and val/ of class folders"
    )
    command.add_argument("destination", metavar="DST", help="folder for the dataset")
    command.add_argument(
        "--shard-bytes", type=_size, default=Settings().shard_bytes, metavar="SIZE",
        help="size of a shard, such as 256MB or 1GiB (default: 256MB)",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of the order of the samples (default: 0)")
    command.add_argument(
        "--workers", type=int, help="processes (default: one per core); changes nothing in the result"
    )
    command.add_argument(
        "--max-bad", default="1%", metavar="N",
        help="rejected images allowed, a count or a percentage; more end the build (default: 1%%)",
    )  # fmt: skip
    command.add_argument(
        "--overwrite", action="store_true", help="replace a dataset or unfinished build in DST"
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=_build)

    command = commands.add_parser(
        "verify",
        help="check a dataset against its checksums and index",
        description="Check every file's SHA-256, and tars, index and labels against each other. Exit status 1 if "
        "anything is wrong.",
    )
    command.add_argument("dataset", metavar="DATASET")
    command.add_argument("--decode", action="store_true", help="also decode every image")
    command.add_argument("--json", action="store_true", help="print the problems as a JSON list")
    command.set_defaults(run=_verify)

    command = commands.add_parser(
        "info", help="show what a dataset holds", description="Show a dataset in figures."
    )
    command.add_argument("dataset", metavar="DATASET")
    command.add_argument("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=_info)
    return parser


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]i?)?B?", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 256MB, 1GiB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _build(options: argparse.Namespace) -> int:
    began = time.monotonic()
    with _Progress() as progress:
        result = build(
            options.source,
            options.destination,
            Settings(seed=options.seed, shard_bytes=options.shard_bytes),
            workers=options.workers,
            max_bad=options.max_bad,
            overwrite=options.overwrite,
            progress=progress,
        )
    for row in result.rejected[:10]:
        print(f"rejected {row['source']}: {row['reason']}", file=sys.stderr)
    if len(result.rejected) > 10:
        print(f"rejected {len(result.rejected) - 10} more, see rejected.jsonl", file=sys.stderr)
    if options.json:
        print(json.dumps({field: getattr(result, field) for field in Result.__slots__}))
    else:
        print(_summary(result, options.destination, time.monotonic() - began))
    return 0


def _summary(result: Result, destination: str, seconds: float) -> str:
    if result.complete_before:
        return f"{destination}: already complete, {result.packed:,} samples in {result.shards:,} shards"
    kept = f" ({result.kept_shards:,} from the run before)" if result.kept_shards else ""
    return (
        f"{destination}: {result.packed:,} samples in {result.shards:,} shards{kept}, "
        f"{result.repaired:,} repaired, {len(result.rejected):,} rejected, {seconds:.1f} s"
    )


def _verify(options: argparse.Namespace) -> int:
    problems = verify(options.dataset, decode=options.decode)
    if options.json:
        print(json.dumps(problems))
    else:
        for problem in problems:
            print(problem)
        print(f"{options.dataset}: {f'{len(problems)} problems' if problems else 'sound'}")
    return 1 if problems else 0


def _info(options: argparse.Namespace) -> int:
    figures = info(Dataset.open(options.dataset))
    print(json.dumps(figures) if options.json else table(figures))
    return 0


class _Progress:
    """A bar on a terminal; in a log, a plain line every ten seconds."""

    def __enter__(self) -> _Progress:
        self._bar = tqdm(unit="image", unit_scale=True, desc="packing", disable=not sys.stderr.isatty())
        self._began = self._said = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= 10:
            rate = done / (now - self._began)
            left = (total - done) / rate
            print(
                f"packed {done:,} of {total:,} images, {rate:,.0f} images/s, {left:.0f} s left",
                file=sys.stderr,
            )
            self._said = now


if __name__ == "__main__":
    sys.exit(main())
