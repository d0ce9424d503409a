"""`python -m train serve RUN`: a trained network behind HTTP."""

from __future__ import annotations

import argparse
import math
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from shard.errors import FeedlineError
from train.commands.computing import add_forward, with_decoding
from train.commands.options import add_network, find_device, positive, require_folder
from train.commands.outside import add_exif, with_exif
from train.inference import Network
from train.trained import load_trained

if TYPE_CHECKING:
    from train.serve.app import Limits

_DESCRIPTION = """Answer HTTP requests with the likeliest classes of the images that are sent: POST /predict. Images are
decoded as `python -m train predict` does, and computed in batches of those that come at the same time. GET / tells what
the model is, GET /health whether it works, GET /metrics what it has done. Needs the extra feedline[serve];
docs/after.md says more."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status: 0 after SIGTERM or Ctrl-C.

    Raises:
        FeedlineError: no run, no free port, or no extra.
    """
    options = _parser().parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise FeedlineError("serve is one process: leave torchrun out")
    try:
        from train.serve import app, server
    except ImportError as error:
        raise FeedlineError(f"serve needs {error.name}: pip install 'feedline[serve]'") from error
    limits = app.Limits(
        max_body_bytes=round(options.max_body_mb * 1e6),
        max_pixels=round(options.max_megapixels * 1e6),
        upload_timeout_s=options.upload_timeout_s,
        timeout_s=options.timeout_s,
        queue=options.queue,
        max_batch=options.max_batch,
        max_wait_s=options.max_wait_ms / 1000,
    )
    # The address before the network, which takes its time.
    with closing(server.bind(options.host, options.port)) as listener:
        _serve(options, limits, listener)
    return 0


def _serve(options: argparse.Namespace, limits: Limits, listener: socket.socket) -> None:
    from train.serve import app, server
    from train.serve.classifier import Classifier

    trained = load_trained(require_folder(options.run), options.checkpoint, weights=options.weights)
    trained = with_exif(with_decoding(trained, options), options.exif)
    network = Network(
        trained, find_device(options.device), precision=options.precision, flip_tta=options.flip_tta
    )
    service = app.Service(trained, limits)
    classifier = Classifier(trained, network, max_pixels=limits.max_pixels, on_batch=service.metrics.batch)
    classifier.warm(limits.max_batch)
    service.start(classifier)
    running = server.make_server(
        app.make_app(service),
        head_timeout_s=limits.upload_timeout_s,
        stop_timeout_s=math.ceil(limits.upload_timeout_s + limits.timeout_s) + 1,
    )
    listener.listen()  # from here on clients may come, and wait until it runs
    about = f"{trained.config.model.arch}, {len(trained.classes):,} classes, {network.device}"
    print(f"{server.url_of(listener)} serves {options.run} ({about}); Ctrl-C stops it", file=sys.stderr)
    server.run(running, listener)
    service.batcher.close()
    classifier.close()
    print("stopped", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train serve", description=_DESCRIPTION, allow_abbrev=False
    )
    add = parser.add_argument
    add_network(parser)
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets other machines in, :: too with IPv6 (default: 127.0.0.1, this "
        "machine alone)",
    )
    add("--port", type=_port, default=8000, help="0: any that is free (default: 8000)")
    add_exif(parser)
    add("--max-batch", type=positive, default=32, metavar="N", help="images a batch (default: 32)")
    add(
        "--max-wait-ms",
        type=_not_negative,
        default=5.0,
        metavar="MS",
        help="longest time that an image waits for others that are being decoded (default: 5)",
    )
    add(
        "--queue",
        type=positive,
        default=256,
        metavar="N",
        help="images that wait for an answer at a time; 503 beyond (default: 256)",
    )
    add(
        "--timeout-s",
        type=_above_zero,
        default=30.0,
        metavar="S",
        help="for an answer; 504 then (default: 30)",
    )
    add(
        "--upload-timeout-s",
        type=_above_zero,
        default=10.0,
        metavar="S",
        help="for an upload; 408 then (default: 10)",
    )
    add("--max-body-mb", type=_above_zero, default=20.0, metavar="MB", help="413 beyond (default: 20)")
    add("--max-megapixels", type=_above_zero, default=64.0, metavar="MP", help="413 beyond (default: 64)")
    add(
        "--loader-threads",
        type=positive,
        metavar="N",
        help="that decode (default: the cores of this process)",
    )
    add_forward(parser)
    parser.set_defaults(loader_backend="torch")  # the one that decodes images alone
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, 0 … 65535")
    return int(text)


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value


def _above_zero(text: str) -> float:
    if not (value := _not_negative(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value
