"""Command line of `python -m bench peers`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.options import add_data, find_device, positive, publish, require_positive, require_writable, say
from bench.peers import PEERS
from bench.peers.compare import Contest, compare
from bench.peers.report import picture, table
from bench.report import require_matplotlib
from loader.resolve import usable_cores


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `peers` to the command line."""
    command = commands.add_parser(
        "peers",
        help="the same work by other loaders, and by ours",
        description="Random resized crop and flip by other loaders on the same images with as many threads, each in a "
        "process of its own; that they do the same work is checked first. Some need the images in another format: "
        "copies are made in the temporary folder. Peers that are not installed are listed as left out.",
    )
    add = command.add_argument
    add_data(add)
    add("--split", default="train", help="split to read (default: train)")
    add("--size", type=positive, default=224, help="side of the crops, pixels (default: 224)")
    add("--batch-size", type=positive, default=64, help="images per batch (default: 64)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where batches are wanted")
    add("--threads", type=positive, help="threads or worker processes of everyone (default: one per core)")
    add("--only", metavar="NAMES", help=f"comma-separated, out of {', '.join(PEERS)} (default: all)")
    add(
        "--augment",
        metavar="POLICY",
        help="also augment: rand-m9-n2 and the like, ta_wide, autoaugment or 3a",
    )
    add("--repeats", type=positive, default=5, help="interleaved repeats (default: 5)")
    add("--seconds", type=float, default=3.0, help="per peer and repeat (default: 3)")
    add("--out", type=Path, default=Path("bench-peers"), help="folder for peers.json and peers.png")
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    require_matplotlib()
    require_positive(options.seconds)
    require_writable(options.out / "peers.json")
    only = tuple(name.strip() for name in (options.only or ",".join(PEERS)).split(",") if name.strip())
    device = find_device(options.device)
    contest = Contest(
        data=options.data,
        split=options.split,
        size=options.size,
        batch_size=options.batch_size,
        threads=options.threads or usable_cores(),
        repeats=options.repeats,
        seconds=options.seconds,
        only=only,
        augment=options.augment,
    )
    record = compare(contest, device, say)
    publish(record, table(record), as_json=options.json, file=options.out / "peers.json")
    picture(record, options.out / "peers.png")
    return 0
