"""`python -m train export RUN --format FORMAT`: the network as a file for those who have no feedline."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from train.commands.options import add_run, positive, require_folder, size_text
from train.export import FORMATS, Exported, export
from train.export.deploy import BATCH_SIZES, SAMPLES
from train.trained import load_trained

_DESCRIPTION = """Write a run's network as a file that needs no feedline: any number of uint8 images [N, H, W, 3] in,
logits out, normalisation inside, class names and transform in the metadata. It gets its name only when it computes
what the run computes. docs/after-export.md shows how to use it."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.synthetic and options.data is not None:
        parser.error("--synthetic compares on noise, --data on a dataset; leave one out")
    trained = load_trained(require_folder(options.run), options.checkpoint, weights=options.weights)
    dataset = None if options.synthetic else trained.dataset(options.data)
    found = export(trained, options.format, options.out, dataset, samples=options.samples)
    of = "noise" if dataset is None else f"{trained.config.input.eval_split!r} of {dataset.root}"
    print(_said(found, options.format, of))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train export", description=_DESCRIPTION, allow_abbrev=False
    )
    add = parser.add_argument
    add_run(parser)
    add("--format", required=True, choices=FORMATS, help="onnx needs the extra feedline[export]")
    add("--out", type=Path, metavar="PATH", help="file, or folder for timm (default: in RUN/export)")
    add(
        "--samples",
        type=positive,
        default=SAMPLES,
        metavar="N",
        help=f"images of the run's evaluation split that are compared (default: {SAMPLES})",
    )
    add(
        "--synthetic",
        action="store_true",
        help="compare on noise: no dataset is needed, class names stay ids",
    )
    return parser


def _said(found: Exported, kind: str, of: str) -> str:
    sizes = " and ".join(map(str, BATCH_SIZES))
    about = found.about
    lines = [
        f"{found.path} ({size_text(found.size_bytes)}): {about['arch']}, {about['checkpoint']} after epoch "
        + about["epoch"]
        + (", averaged weights" if about["averaged"] == "true" else ""),
        f"in: {about['input']}; out: {about['output']}",
        f"compared with the run on {found.images} images of {of}, in batches of {sizes}: logits differ by at most "
        f"{found.difference:.1e}",
    ]
    if kind == "timm" and about["own_arch"] == "true":
        lines.append(
            f"{about['arch']} is feedline's own: `import train.models` before timm or transformers reads it"
        )
    return "\n".join(lines)
