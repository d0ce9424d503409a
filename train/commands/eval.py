"""`python -m train eval RUN --data DATASET`: judge a trained network on a split, on one process or many."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from loader import Loader
from shard.dataset import Dataset, Split, read_sources
from shard.errors import FeedlineError
from shard.labels import require_single
from train.assess import Samples, collect, multi_label, summarize
from train.assess.agreement import label_numbers
from train.assess.evaluation import shorter_sides
from train.assess.files import PICTURE, require_writable, write
from train.assess.other_labels import OtherLabels
from train.assess.report import report
from train.commands.computing import add_computing, with_decoding
from train.commands.options import add_run, not_negative, require_folder
from train.distributed import World, connect, env_rank
from train.inference import Network
from train.inputs import rank_loader
from train.labels import require_alike
from train.plots import has_matplotlib
from train.progress import Progress
from train.run_folder import RunFolder
from train.trained import Trained, load_trained

_DESCRIPTION = """Judge a trained network on a split: accuracy with its interval, loss, calibration, scores by class,
the classes it confuses, and every sample's prediction; of multi-label runs average precision and scores by class.
Weights, precision, transform and mirrored images are those that the run judged itself by. The same under torchrun, with
the same figures. docs/after.md explains them."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status.

    Raises:
        FeedlineError: an error that all ranks meet alike.
    """
    options = _parser().parse_args(argv)
    trained = load_trained(require_folder(options.run), options.checkpoint, weights=options.weights)
    trained = with_decoding(trained, options)
    require_single(trained.multi_label and options.real is not None, "--real", "leave it out")
    other = OtherLabels(options.real, trained.classes) if options.real is not None else None
    dataset = trained.dataset(options.data)
    require_alike(trained.multi_label, dataset, trained.checkpoint)
    name = trained.split_of(dataset, options.split)
    split = dataset.split(name)
    numbers = label_numbers(trained.classes, dataset.classes, trained.checkpoint, dataset.root)
    folder = _folder(options, trained, dataset, name)
    require_writable(folder)
    if other is not None:
        other.match(read_sources(split.root).to_pylist())  # raises before the work, too
    connected = False
    try:
        with connect(options.device, trained.config.ranks) as world:
            connected = world.size > 1
            network = Network(trained, world.device, precision=options.precision, flip_tta=options.flip_tta)
            with _loader(trained, dataset, name, options, world) as loader:
                gather = multi_label.collect if trained.multi_label else collect
                samples = gather(
                    network.logits, loader, world, labels=numbers, progress=_progress(loader, world)
                )
            if world.is_main:
                about = _about(trained, dataset, name, network, options)
                _finish(samples, split, other, about, folder)
    except FeedlineError as error:
        if not connected:
            raise
        print(f"[rank {env_rank()}] error: {error}", file=sys.stderr)  # it may be one rank's own
        return 1
    return 0


def _loader(
    trained: Trained, dataset: Dataset, split: str, options: argparse.Namespace, world: World
) -> Loader:
    given = trained.config.input
    # Not less on many ranks: the same shape on any number of them computes the same numbers.
    size = min(options.batch_size, len(dataset.split(split)))
    return rank_loader(given, dataset, split, given.eval_transform(), world, batch_size=size)


def _progress(loader: Loader, world: World) -> Any:
    shown = Progress(active=world.is_main and sys.stderr.isatty())

    def update(done: int) -> None:
        shown.update(f"{done:,} of {loader.num_samples:,} samples")
        if done == loader.num_samples:
            shown.update("")

    return update


def _finish(
    samples: Samples | multi_label.MultiLabelSamples,
    split: Split,
    other: OtherLabels | None,
    about: dict[str, Any],
    folder: Path,
) -> None:
    """Compute, print and write."""
    sources = read_sources(split.root).to_pylist()
    classes, undecoded, seed = about.pop("classes"), len(split) - len(samples), about["seed"]
    if isinstance(samples, Samples):
        single = summarize(
            samples,
            classes,
            shorter_side=shorter_sides(split, samples),
            undecoded=undecoded,
            seed=seed,
            other=other.compare(samples, sources) if other is not None else None,
        )
        text = report(single)
        files = partial(write, folder, single, about, samples, split, sources)
    else:
        several = multi_label.summarize(samples, classes, undecoded=undecoded, seed=seed)
        text = multi_label.report(several)
        files = partial(multi_label.write, folder, several, about, samples, split, sources)
    weights = "averaged weights" if about["averaged"] else "weights"
    mirrored = ", with mirror images" if about["flip_tta"] else ""
    print(
        f"{about['checkpoint']} ({weights} after epoch {about['epoch']}) on split {about['split']!r} of "
        f"{about['data']}, {about['precision']}{mirrored}\n\n{text}",
        flush=True,  # whatever becomes of the files
    )
    print(f"{folder}: {', '.join(path.name for path in files())}")
    if isinstance(samples, Samples) and not has_matplotlib():
        print(f"{PICTURE} is left out: it needs matplotlib: pip install 'feedline[plot]'", file=sys.stderr)


def _about(
    trained: Trained, dataset: Dataset, split: str, network: Network, options: argparse.Namespace
) -> dict[str, Any]:
    """What was evaluated and how."""
    given = trained.config.input
    return {
        "run": str(trained.root),
        "checkpoint": str(trained.checkpoint),
        "own_checkpoint": RunFolder(trained.root).owns(trained.checkpoint),
        "averaged": trained.averaged,
        "epoch": trained.epoch,
        "arch": trained.config.model.arch,
        "data": str(dataset.root),
        "fingerprint": dataset.fingerprint,
        "split": split,
        "eval_size": given.eval_size,
        "eval_resize": given.eval_resize,
        "interpolation": given.interpolation,
        "flip_tta": network.flip_tta,
        "precision": network.precision,
        "device": network.device.type,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "classes": trained.classes,
    }


def _folder(options: argparse.Namespace, trained: Trained, dataset: Dataset, split: str) -> Path:
    """Where the files go: a folder for each dataset, split and checkpoint, and for what the run did otherwise."""
    if options.out is not None:
        return Path(options.out)
    parts = [dataset.root.name, split, trained.checkpoint.stem]
    if options.weights == "plain" and trained.config.ema.ema_decay:
        parts.append("plain")
    if options.flip_tta not in (None, trained.config.evaluation.flip_tta):
        parts.append("mirrored" if options.flip_tta else "unmirrored")
    run = RunFolder(trained.root)
    if not run.owns(trained.checkpoint):
        where = trained.checkpoint.parent.resolve()
        parts += ["of", (where.parent if where.name == run.checkpoints.name else where).name]
    return run.evaluations / "-".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train eval", description=_DESCRIPTION, allow_abbrev=False
    )
    add = parser.add_argument
    add_run(parser)
    add("--split", metavar="NAME", help="split to judge on (default: the run's evaluation split)")
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where files go (default: RUN/eval/DATASET-SPLIT-CHECKPOINT)",
    )
    add(
        "--real",
        type=Path,
        metavar="FILE",
        help="judge by these labels, too: ImageNet ReaL's real.json, an ImageNetV2 list, or {image: label or labels}",
    )
    add_computing(parser)
    add("--seed", type=not_negative, default=0, help="of the bootstrap intervals (default: 0)")
    return parser
