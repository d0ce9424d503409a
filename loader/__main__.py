"""Command line: python -m loader show."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from loader.augment import Compose, PadCrop, RandomResizedCrop, ResizeCenterCrop
from loader.erase import MODES, RandomErasing
from loader.params import Transform
from loader.policies import parse_policy
from loader.resolve import BACKENDS
from loader.show import make_sheet, recipe_transform, save, spread
from shard.dataset import Dataset
from shard.ending import in_one_line
from shard.errors import FeedlineError

_CROPS: dict[str, Transform] = {
    "random-resized": RandomResizedCrop(),
    "pad": PadCrop(size=32),
    "center": ResizeCenterCrop(),
}
_CROP = "random-resized"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 unread."""
    return in_one_line(lambda: _show(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loader", description="Look at what the loader gives.", allow_abbrev=False
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "show",
        help="draw what a model will really see",
        description="Write a PNG with a row per sample: its middle without augmentation, then as the model gets it in "
        "epoch after epoch. The pixels are those of the batches of a training run with this seed, dataset, backend "
        "and device.",
        allow_abbrev=False,
    )
    _add_what(command)
    _add_transform(command)
    return parser


def _add_what(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("data", metavar="DATA", help="dataset folder or URL")
    add("--split", default="train", help="split to show (default: train)")
    add("--ids", type=_ids, metavar="3,17,99", help="samples (default: some from all over the split)")
    add("--rows", type=_positive, default=6, metavar="N", help="samples without --ids (default: 6)")
    add("--epochs", type=_positive, default=6, metavar="N", help="epochs (default: 6)")
    add("--epoch", type=_number, default=0, metavar="FIRST", help="first epoch (default: 0)")
    add("--seed", type=_number, default=0, help="of the augmentation (default: 0)")
    add("--backend", choices=BACKENDS, default="auto", help="decoder (default: auto)")
    add("--device", default="cpu", help="where to decode: cpu, cuda, cuda:1 … (default: cpu)")
    add(
        "--out", type=_png, default=Path("show.png"), metavar="FILE.png", help="the sheet (default: show.png)"
    )


def _add_transform(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--size", type=_positive, metavar="PX", help="side of the images (default: the recipe's)"
    )
    command.add_argument("--recipe", metavar="NAME", help="training recipe whose augmentation is shown")
    group = command.add_argument_group("instead of a recipe")
    add = group.add_argument
    add("--crop", choices=_CROPS, help=f"crop (default: {_CROP})")
    add("--augment", metavar="POLICY", help="rand-m9-mstd0.5-inc1 and the like, autoaugment, ta_wide, or 3a")
    add("--erase", type=float, metavar="P", help="probability of random erasing")
    add("--erase-mode", choices=MODES, help="what boxes are painted with (default: pixel)")


def _show(options: argparse.Namespace) -> int:
    transform = _transform(options)
    dataset = Dataset.open(options.data)
    ids = options.ids or spread(dataset.split(options.split), options.rows, options.seed)
    sheet = make_sheet(
        dataset,
        options.split,
        transform,
        ids,
        range(options.epoch, options.epoch + options.epochs),
        title=f"{options.data}, split {options.split}: {_name(options)}, {transform.size} px, seed {options.seed}",
        seed=options.seed,
        device=options.device,
        backend=options.backend,
    )
    for sample, reason in sheet.bad.items():
        print(f"warning: sample {sample} is black: {reason}", file=sys.stderr)
    save(sheet, options.out)
    print(f"{options.out}: samples {', '.join(map(str, ids))} in {options.epochs} epochs")
    return 0


def _transform(options: argparse.Namespace) -> Transform:
    if options.recipe is not None:
        for flag in ("crop", "augment", "erase", "erase_mode"):
            if getattr(options, flag) is not None:
                raise FeedlineError(
                    f"--{flag.replace('_', '-')} and --recipe exclude each other; leave one out"
                )
        transform = recipe_transform(options.recipe)
    else:
        transform = _described(options)
    return transform if options.size is None else transform.at_size(options.size)


def _name(options: argparse.Namespace) -> str:
    if options.recipe is not None:
        return f"recipe {options.recipe}"
    parts = [f"{options.crop or _CROP} crop"]
    if options.augment is not None:
        parts.append(options.augment)
    if options.erase is not None:
        parts.append(f"erase {options.erase:g}")
    return ", ".join(parts)


def _described(options: argparse.Namespace) -> Transform:
    if options.erase_mode is not None and options.erase is None:
        raise FeedlineError("--erase-mode is given without --erase; give the probability of erasing, too")
    crop = _CROPS[options.crop or _CROP]
    policies = () if options.augment is None else (parse_policy(options.augment),)
    erasing = None
    if options.erase is not None:
        erasing = RandomErasing(probability=options.erase)
        if options.erase_mode is not None:
            erasing = dataclasses.replace(erasing, mode=options.erase_mode)
    return Compose(crop, policies, erasing) if policies or erasing else crop


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} are no sample ids; write numbers such as 3,17,99"
        ) from None


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _png(text: str) -> Path:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
