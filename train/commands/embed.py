"""`python -m train embed RUN`: features to Parquet, kNN accuracy, nearest neighbours of images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from loader.show import save
from shard.dataset import Dataset
from shard.errors import FeedlineError
from shard.labels import label_text, require_single
from train.commands.computing import with_decoding
from train.commands.options import add_run, find_device, positive, require_folder, with_suffix
from train.commands.outside import add_exif, lines, tell_sideways, with_exif
from train.feature_file import FeatureFile
from train.features import PENULTIMATE, Extractor, Features, extract
from train.knn import NEIGHBOURS, Bank, KnnAccuracy
from train.neighbours import Found, Search, make_sheet
from train.numerics import set_numerics
from train.predict.images import Bad, is_sideways, load_image
from train.predict.names import find_images
from train.predict.pixels import Pixels
from train.predict.writers import printable
from train.trained import Trained, load_trained
from train.whole import whole

_DESCRIPTION = """Features of a split by any layer of a run's network. Written to Parquet (--out), used to classify by
neighbours in another split (--knn), or to find the samples nearest to images (--search); any of these together."""

_TOP, _SHEET = 8, "neighbours.png"
_Sink = Callable[[Features], None]


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not (options.out or options.knn or options.search):
        parser.error("give --out FILE.parquet, --knn SPLIT or --search IMAGE: there is nothing else to do")
    for flag, needs in (("k", "knn"), ("top", "search"), ("sheet", "search"), ("exif", "search")):
        if getattr(options, flag) is not None and not getattr(options, needs):
            parser.error(f"--{flag} is for --{needs}, which is not given; leave it out")
    options.k, options.top = options.k or NEIGHBOURS, options.top or _TOP
    options.sheet = options.sheet or Path(_SHEET)
    device = find_device(options.device)
    set_numerics("fp32", device, deterministic=False)
    trained = load_trained(
        require_folder(options.run), options.checkpoint, weights=options.weights, device=device
    )
    trained = with_exif(with_decoding(trained, options), options.exif)
    job = _Job(options, trained, trained.dataset(options.data), device)
    job.run()
    return 0


class _Job:
    """One pass over the split, with everything that was asked for fed from it."""

    def __init__(
        self, options: argparse.Namespace, trained: Trained, dataset: Dataset, device: torch.device
    ) -> None:
        self.options, self.trained, self.dataset, self.device = options, trained, dataset, device
        self.split = trained.split_of(dataset, options.split)
        self.rows = dataset.split(self.split)
        self.extractor = Extractor(trained.net, options.layer)

    def run(self) -> None:
        """Do all of it, and print what was found."""
        options, knn, search = self.options, None, None
        sinks: list[_Sink] = []
        if options.search:
            names, images = self.outside()
            size = options.batch_size
            parts = [self.extractor(images[i : i + size]) for i in range(0, len(images), size)]
            search = Search(torch.cat(parts), options.top)
            sinks.append(search.add)
        if options.knn:
            require_single(self.dataset.multi_label, "--knn", "leave it out")
            bank = Bank.of(self.features(options.knn))
            same = options.knn == self.split
            knn = KnnAccuracy(bank, len(self.dataset.classes), k=options.k, same_split=same)
            sinks.append(knn.add)
        count = self.feed(sinks)
        if missing := len(self.rows) - count:
            print(f"{missing} samples of {self.split!r} could not be decoded and are left out")
        if options.out:
            print(f"{options.out}: {count} features of {self.split!r}, layer {options.layer}")
        if knn is not None:
            found = knn.result()
            print(
                f"kNN accuracy, k = {options.k}: top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} % of {found.samples} "
                f"samples of {self.split!r}, by their neighbours in {options.knn!r}"
            )
        if search is not None:
            self.show(search.result(), names, images)

    def outside(self) -> tuple[list[str], torch.Tensor]:
        """Names of the images to search for, and their pixels: uint8 [Q, size, size, 3].

        Raises:
            FeedlineError: one of them cannot be read or decoded.
        """
        policy = self.trained.images
        names, loaded = [], []
        for found in find_images(self.options.search, lines()):
            image = found if isinstance(found, Bad) else load_image(found, policy)
            if isinstance(image, Bad):
                raise FeedlineError(f"cannot search for {image.name}: {image.reason}")
            names.append(found if isinstance(found, str) else found.name)
            loaded.append(image)
        if not loaded:
            raise FeedlineError("--search names no images; give files, folders or patterns")
        with Pixels(self.trained, self.device, len(loaded)) as pixels:
            decoded = pixels(loaded)
        for row, reason in decoded.bad.items():
            raise FeedlineError(f"cannot search for {names[row]}: {reason}")
        sideways = [name for name, image in zip(names, loaded, strict=True) if is_sideways(image, policy)]
        tell_sideways(sideways, self.options.exif)
        return names, decoded.images

    def features(self, split: str) -> Iterator[Features]:
        """Features of a split."""
        return extract(
            self.trained, self.dataset, split, self.extractor, self.device, batch_size=self.options.batch_size
        )

    def feed(self, sinks: list[_Sink]) -> int:
        """Give every batch of features to all sinks, and to the file; returns how many samples there were."""
        count = 0
        with ExitStack() as stack:
            if self.options.out:
                aside = stack.enter_context(whole(self.options.out))
                file = stack.enter_context(FeatureFile(aside, self.dataset, self.rows, self.about()))
                sinks = [file.add, *sinks]
            for part in self.features(self.split):
                count += len(part.ids)
                for sink in sinks:
                    sink(part)
        return count

    def about(self) -> dict[str, str]:
        """What the features are of."""
        return {
            "run": str(self.trained.root),
            "checkpoint": self.trained.checkpoint.name,
            "arch": self.trained.config.model.arch,
            "layer": self.options.layer,
            "dataset": str(self.dataset.root),
            "fingerprint": self.dataset.fingerprint,
            "split": self.split,
        }

    def show(self, found: Found, names: list[str], images: torch.Tensor) -> None:
        """Print the neighbours and draw them."""
        for name, ids, cosines in zip(names, found.ids.tolist(), found.cosines.tolist(), strict=True):
            print(f"{printable(name)}:")
            for rank, (i, cosine) in enumerate(zip(ids, cosines, strict=True), start=1):
                of = label_text(self.rows.label_of(i), self.dataset.classes)
                print(f"  {rank:>3}  cosine {cosine:.4f}  id {i}  key {self.rows.key(i)}  {of}")
        title = f"{self.trained.root}, layer {self.options.layer}: nearest in {self.dataset.root}, split {self.split}"
        captions = [printable(Path(name).name) for name in names]
        sheet = make_sheet(
            self.trained, self.dataset, self.split, images.cpu().numpy(), captions, found, title
        )
        save(sheet, self.options.sheet)
        print(f"{self.options.sheet}: the images and their neighbours")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train embed", description=_DESCRIPTION, allow_abbrev=False
    )
    add = parser.add_argument
    add_run(parser)
    add("--split", metavar="S", help="split of the dataset (default: the one that the run evaluates on)")
    add(
        "--layer",
        default=PENULTIMATE,
        metavar="NAME",
        help="module of the timm model, such as layer3 or blocks.5; maps and sequences are averaged (default: "
        f"{PENULTIMATE}, what the classifier sees)",
    )
    add("--out", type=with_suffix(".parquet"), metavar="FILE.parquet", help="write a row per sample")
    add("--knn", metavar="SPLIT", help="classify by the neighbours in this split; may be the same one")
    add("--k", type=positive, help=f"neighbours that vote (default: {NEIGHBOURS})")
    add(
        "--search",
        nargs="+",
        action="extend",
        metavar="IMAGE",
        help="find the samples nearest to these files, folders or patterns",
    )
    add_exif(parser)
    add("--top", type=positive, metavar="N", help=f"neighbours per image (default: {_TOP})")
    add(
        "--sheet",
        type=with_suffix(".png"),
        metavar="FILE.png",
        help=f"picture of what --search found (default: {_SHEET})",
    )
    add("--batch-size", type=positive, default=64, metavar="N", help="samples at a time (default: 64)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default: auto)")
    parser.set_defaults(loader_backend=None, loader_threads=None)  # the run's, and as many as there are cores
    return parser
