"""The program of `python -m train` and `torchrun -m train`, for one process and for many."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shard.dataset import Dataset
from shard.ending import unless_unread
from shard.errors import FeedlineError
from train import checkpoint
from train.build import length_of
from train.claim import require_free, require_kept
from train.cli import Options, UsageError, list_recipes, parse
from train.distributed import World, connect, env_rank
from train.engine import Trainer
from train.labels import fitted
from train.plan import check, dry_run, find_batch_size, plan_text
from train.run_folder import RunFolder, require_same
from train.settle import settled, start_line
from train.state import is_finished, rejudge
from train.stop import Stopped
from train.summary import read, show
from train.telemetry import NonFiniteError

# What comes before and after a training: the first word, and the module whose `main` takes the other words.
COMMANDS = {
    "compare": "train.commands.compare",
    "embed": "train.commands.embed",
    "eval": "train.commands.eval",
    "export": "train.commands.export",
    "predict": "train.commands.predict",
    "report": "train.commands.report",
    "serve": "train.commands.serve",
    "sweep": "train.commands.sweep",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in COMMANDS:
        return unless_unread(lambda: _command(words[0], words[1:]))
    return unless_unread(lambda: _train(words))


def _train(argv: Sequence[str]) -> int:
    connected = False
    try:
        options = parse(argv)
        if options.list_recipes:
            print(list_recipes(), end="")
            return 0
        with connect(options.settings.device, options.settings.ranks) as world:
            connected = world.size > 1
            return run(options, world)
    except UsageError as error:
        return _fail(str(error), 2, alike=True)
    except NonFiniteError as error:
        return _fail(str(error), 1, alike=True)
    except FeedlineError as error:
        # Before the ranks are connected all make the same mistake; after that it may be one's own.
        return _fail(str(error), 1, alike=not connected)
    except Stopped as stopped:
        if env_rank() == 0:
            print("checkpoint written; the same command goes on from it", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        return _fail("interrupted before training began", 130, alike=True)


def _command(name: str, argv: Sequence[str]) -> int:
    """Run one of `COMMANDS`, whose modules are imported only then: some need extras."""
    try:
        status: int = importlib.import_module(COMMANDS[name]).main(argv)
    except FeedlineError as error:
        return _fail(str(error), 1, alike=True)
    except MemoryError as error:
        return _fail(f"not enough memory ({error}); give a smaller --batch-size", 1, alike=True)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, alike=True)
    return status


def run(options: Options, world: World) -> int:
    """Train as the options say, and print the result on rank 0."""
    config = options.settings
    assert config.data is not None  # parse() sees to both
    assert config.run_dir is not None
    dataset = Dataset.open(config.data)
    folder = RunFolder(config.run_dir)
    config = fitted(config, dataset, options.given)
    if options.check or options.find_batch_size or options.dry_run:
        planned = settled(config, None, options.given)
        if options.check:
            text = check(planned, dataset, world)
        elif options.find_batch_size:
            text = find_batch_size(planned, dataset, world, options.memory_gib)
        else:
            text = plan_text(dry_run(planned, dataset, world))
        if world.is_main:
            print(text)
        return 0
    if world.is_main:
        require_free(folder)
    with folder.locked() if world.is_main else contextlib.nullcontext():
        # One rank chooses: others could see the folder at another moment.
        path = world.gather(folder.find(options.resume) if world.is_main else None)[0]
        content = checkpoint.load(path) if path is not None else None
        config = settled(config, content, options.given)
        if path is not None and content is not None:
            require_same(path, content, config, dataset)
            rejudge(content, config.stop)
        keep = path is not None and folder.owns(path)
        if world.is_main:
            if path is None:
                require_kept(folder, config.model.pretrained)
            folder.prepare(fresh=path is None)
            if path is not None and content is not None and keep:
                folder.go_back_to(path, content)
        world.gather(None)  # no rank goes on before the folder is ready
        epochs = length_of(config, dataset).epochs
        if content is not None and is_finished(content, epochs) and (not keep or folder.summary.exists()):
            return _finished(path, folder, world, keep=keep)
        if content is not None and world.is_main:
            if keep:  # killed after its last epoch, this run would show the result of the training before
                folder.summary.unlink(missing_ok=True)
            print(
                f"going on from {path}: epoch {content['epoch'] + 1}, step {content['step']}", file=sys.stderr
            )
        with Trainer(config, dataset, world, folder, content, keep_metrics=keep) as trainer:
            if content is None and world.is_main and (line := start_line(config)):
                print(line, file=sys.stderr)
            content = None  # as large as the model and its optimiser
            summary = trainer.train()
    if world.is_main:
        show(summary, folder)
    return 0


def _finished(path: Path, folder: RunFolder, world: World, *, keep: bool) -> int:
    """Say that there is nothing left to train."""
    if not keep:
        raise FeedlineError(f"{path} is the end of a finished run; there is nothing left to train")
    if world.is_main:
        print(f"{folder.root} holds this run, finished. To train afresh: --run-dir NEW, or --resume never")
        show(read(folder.summary), folder)
    return 0


def _fail(message: str, status: int, *, alike: bool) -> int:
    """Print the error and return `status`; where ranks have it `alike`, the first of each machine prints."""
    if alike and os.environ.get("LOCAL_RANK", "0") != "0":
        # torchrun ends the others as soon as one process leaves. Let the one that prints be the first.
        time.sleep(10)
        return status
    print(f"{'' if alike else f'[rank {env_rank()}] '}error: {message}", file=sys.stderr)
    return status
