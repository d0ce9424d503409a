"""Command line of `python -m bench remote`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from bench.options import add_data, positive, publish, require_writable, say
from bench.remote import RemotePlan, remote, table


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `remote` to the command line."""
    command = commands.add_parser(
        "remote",
        help="how long training waits for data from an object store",
        description="Train a small model from a store, with a cache of limited size, and from the disk, in turn, and "
        "compare how long each waits. Without --url the dataset is served by a slow server on this machine.",
    )
    add, default = command.add_argument, RemotePlan(data=Path())
    add_data(add)
    add("--url", help="the same dataset in a store, such as s3://bucket/dataset")
    for name, kind, text in (
        ("latency-s", float, "of the server, before each answer"),
        ("mb-per-s", float, "rate of the server"),
        ("cache-share", float, "size of the cache, as a share of the training split"),
        ("epochs", positive, "of training"),
        ("model", str, "any timm model"),
        ("size", positive, "side of the crops, pixels"),
        ("batch-size", positive, "images per step"),
        ("window", positive, "shards that a lane of the order mixes"),
        ("lanes", positive, "lanes of the order"),
        ("outage-s", float, "how long the server cuts all connections, after the start-up"),
        ("repeats", positive, "of both, in turn"),
    ):
        value = getattr(default, name.replace("-", "_"))
        add(f"--{name}", type=kind, default=value, help=f"{text} (default: {value})")
    add("--out", type=Path, help="also write the record to this file")
    add("--json", action="store_true", help="print the record instead of the table")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    require_writable(options.out)
    chosen = {f.name: getattr(options, f.name) for f in fields(RemotePlan) if hasattr(options, f.name)}
    record = remote(RemotePlan(**chosen), say)
    publish(record, table(record), as_json=options.json, file=options.out)
    return 0
