"""Flags of the commands that run images through a network: how it computes, and how images are decoded."""

from __future__ import annotations

import argparse
from dataclasses import replace

from loader.resolve import BACKENDS
from train.commands.options import positive
from train.trained import Trained

BATCH_SIZE = 128


def add_computing(parser: argparse.ArgumentParser) -> None:
    """Add all of the flags."""
    add = parser.add_argument
    add(
        "--batch-size",
        type=positive,
        default=BATCH_SIZE,
        metavar="N",
        help=f"images per rank and step (default: {BATCH_SIZE})",
    )
    add_forward(parser)
    add("--loader-backend", choices=BACKENDS, help="decoder (default: the run's)")
    add(
        "--loader-threads",
        type=positive,
        metavar="N",
        help="decoding threads per rank (default: its share of the cores)",
    )


def add_forward(parser: argparse.ArgumentParser) -> None:
    """Add those that say how the network computes."""
    add = parser.add_argument
    add(
        "--flip-tta",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average the logits of every image and its mirror image (default: as the run evaluated)",
    )
    add(
        "--precision",
        choices=("bf16", "fp16", "tf32", "fp32"),
        help="of matrix products and convolutions (default: the run's)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one")


def with_decoding(trained: Trained, options: argparse.Namespace) -> Trained:
    """The same network with the decoder that the flags ask for; threads are this machine's, not the run's."""
    given = trained.config.input
    backend = options.loader_backend or given.loader_backend
    given = replace(given, loader_backend=backend, loader_threads=options.loader_threads)
    return replace(trained, config=replace(trained.config, input=given))
