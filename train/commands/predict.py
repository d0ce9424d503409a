"""`python -m train predict RUN IMAGES…`: what a trained network sees in images."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shard.errors import FeedlineError
from train.commands.computing import add_computing, with_decoding
from train.commands.options import add_network, find_device, positive, require_folder
from train.commands.outside import add_exif, lines, tell_sideways, with_exif
from train.inference import Network
from train.multi_label import THRESHOLD
from train.predict import Bad, Prediction, Predictor, find_images, predict
from train.predict.writers import FORMATS, SUFFIXES, WRITERS, printable, save_parquet
from train.trained import load_trained
from train.whole import whole

_DESCRIPTION = """Print the likeliest classes of images, of the pixels that the run was evaluated on: decoded, resized
and cropped alike. Images that cannot be read or decoded are named on stderr and left out, and the exit status is 1
then; all others are predicted. docs/after.md says more."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status: 0 all predicted, 1 some could not be, 2 wrong usage.

    Raises:
        FeedlineError: nothing can be predicted at all.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    suffix = options.out.suffix.lower() if options.out else ""
    form = options.format or SUFFIXES.get(suffix)
    if form is None:
        parser.error(
            f"--out ends in {suffix!r}, not in {', '.join(filter(None, SUFFIXES))}; give --format, too"
        )
    if form == "parquet" and options.out is None:
        parser.error("--format parquet needs --out FILE: it is no text")
    if options.out is not None and os.path.isdir(options.out):
        raise FeedlineError(f"--out is {options.out}, which is a folder; give a file in it")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise FeedlineError("predict is one process: leave torchrun out (eval is for many)")
    trained = load_trained(require_folder(options.run), options.checkpoint, weights=options.weights)
    trained = with_exif(with_decoding(trained, options), options.exif)
    network = Network(
        trained, find_device(options.device), precision=options.precision, flip_tta=options.flip_tta
    )
    top = min(options.top, len(trained.classes))
    tally = _Tally()
    with Predictor(trained, network, batch_size=options.batch_size, top=top) as predictor:
        found = find_images(options.images, lines())
        try:
            _write(_good(predict(found, predictor), tally), form, options.out, top)
        except BrokenPipeError:
            raise  # `| head` has seen enough: no fault of a disk's
        except OSError as error:
            # What is left in the buffer would be tried again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise FeedlineError(f"cannot write the predictions: {error.strerror or error}") from error
    if options.out is not None:
        print(f"{options.out}: {tally.good:,} predictions")
    if form == "table" and trained.multi_label:
        print(f"* counts as predicted: at least {100 * THRESHOLD:g} %", file=sys.stderr)
    tell_sideways(tally.sideways, options.exif)
    if tally.bad:
        print(f"{tally.bad:,} could not be predicted", file=sys.stderr)
    return 1 if tally.bad else 0


@dataclass(slots=True)
class _Tally:
    good: int = 0
    bad: int = 0
    sideways: list[str] = field(default_factory=list)


def _good(results: Iterable[Prediction | Bad], tally: _Tally) -> Iterator[Prediction]:
    """Predictions; what is none is named on stderr."""
    for one in results:
        if isinstance(one, Bad):
            tally.bad += 1
            print(f"{printable(one.name)}: {printable(one.reason)}", file=sys.stderr)
            continue
        tally.good += 1
        if one.sideways:
            tally.sideways.append(one.name)
        yield one


def _write(rows: Iterable[Prediction], form: str, out: Path | None, top: int) -> None:
    if out is None:
        WRITERS[form](rows, sys.stdout, top)
        sys.stdout.flush()
        return
    with whole(out) as aside:
        if form == "parquet":
            aside.touch()  # what stands against it is told before the work, as for the others
            save_parquet(rows, aside)
        else:
            with aside.open("w", encoding="utf-8", newline="") as file:
                WRITERS[form](rows, file, top)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train predict", description=_DESCRIPTION, allow_abbrev=False
    )
    add = parser.add_argument
    add_network(parser)
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders, patterns, shards, datasets, URLs of these; - reads a list from stdin",
    )
    add("--top", type=positive, default=5, metavar="K", help="classes per image (default: 5)")
    add_exif(parser)
    add("--format", choices=FORMATS, help="default: by the suffix of --out, else table")
    add("--out", type=Path, metavar="FILE", help="default: stdout")
    add_computing(parser)
    return parser
