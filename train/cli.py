"""Command line and configuration file → `Options`. A mistake ends in one line with the nearest valid name."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from shard.errors import FeedlineError
from train.config import Config, flat, load
from train.freeze import ALL_BUT_HEAD
from train.naming import nearest_flag
from train.needs import unmet
from train.recipes import RECIPES, about, recipe

DESCRIPTION = """Train a timm model on a feedline dataset.

Start with a recipe and change what you like:

  python -m train --data DATASET --recipe cifar10_cpu --epochs 5

The same on several processes:

  torchrun --nproc-per-node 2 -m train --data DATASET --recipe cifar10_cpu

--epochs N and --warmup-epochs N are short for --duration Nep and --warmup Nep, --freeze-epochs N for --freeze
all-but-head --freeze-for Nep, --model NAME for --arch NAME. Values that are true or false are switches: --flip-tta,
--no-flip-tta.

Run it again from its folder:

  python -m train --config runs/cifar10_cpu/config.yaml --run-dir runs/again

Values shown with --recipe NAME --help are that recipe's."""


_SWITCH_VALUES = ("True", "False", "None")
_IN_EPOCHS = {
    "--epochs": ["--duration"],
    "--warmup-epochs": ["--warmup"],
    "--freeze-epochs": ["--freeze", ALL_BUT_HEAD, "--freeze-for"],
}


class UsageError(Exception):
    """A mistake on the command line; exit status 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line gives."""

    config: Path | None = None
    """Start from this configuration file instead of a recipe."""
    resume: str = "auto"
    """auto: go on with the run in the run folder if there is one; never: start afresh; or a checkpoint."""
    check: bool = False
    """Check flags, dataset and model, and leave; train nothing, write nothing, need no GPU."""
    dry_run: bool = False
    """Print what the training would take, after a few steps; write nothing."""
    find_batch_size: bool = False
    """Print the largest batch that fits in memory; write nothing."""
    memory_gib: float | None = None
    """Memory that --find-batch-size may use; needed on a CPU."""
    list_recipes: bool = False
    """Print the recipes and leave."""
    given: tyro.conf.Suppress[frozenset[str]] = frozenset()
    """Keys that the command line or the configuration file gives, and not a recipe."""
    settings: Annotated[Config, tyro.conf.arg(name="")]


def parse(argv: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
        UsageError: unknown flag or recipe, missing or wrong value, a flag that does nothing without another.
        FeedlineError: the configuration file is wrong, or values do not go together.
        SystemExit: after --help, with status 0.
    """
    argv = _spell_out(argv)
    _reject_unknown(argv)
    base = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    base.add_argument("--recipe")
    base.add_argument("--config", type=Path)
    try:
        chosen, _ = base.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error
    asking = {"-h", "--help", "--list-recipes"} & set(argv)
    before = _base_config(chosen, bool(asking))
    options = _tyro(argv, Options(config=chosen.config, settings=before))
    settings = options.settings
    if not asking and settings.data is None:
        raise UsageError("--data DATASET is missing: a folder made by `python -m shard build`")
    given = {word.partition("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")}
    if not asking:
        if options.memory_gib is not None and not options.find_batch_size:
            raise UsageError("--memory-gib does nothing here: it needs --find-batch-size")
        if problem := unmet(given, settings):
            raise UsageError(problem)
    undone = before.step.deterministic and not settings.step.deterministic
    if undone and settings.input.hw_decoder_load == 0 and "hw_decoder_load" not in given:
        # It came with --deterministic, which the file of an earlier run writes out, and goes with it.
        settings = replace(settings, input=replace(settings.input, hw_decoder_load=None))
    if "eval_size" in given and "eval_resize" not in given:
        # Else a larger crop would have black borders, and a smaller one would be of the middle of the image alone.
        resize = settings.input.eval_size * before.input.eval_resize // before.input.eval_size
        settings = replace(settings, input=replace(settings.input, eval_resize=resize))
    if settings.run_dir is None:
        settings = replace(settings, run_dir=Path("runs") / _name(settings))
    # A configuration file is complete.
    return replace(
        options, settings=settings, given=frozenset(flat(settings) if chosen.config is not None else given)
    )


def _name(settings: Config) -> str:
    return f"{settings.recipe}-synthetic" if settings.synthetic else settings.recipe


def list_recipes() -> str:
    """Recipes with their documentation; those of one family share it."""
    families: dict[str, list[str]] = {}
    for name in RECIPES:
        families.setdefault(about(name), []).append(name)
    return "\n".join(
        "\n".join(names) + "\n" + "".join(f"    {line}\n" for line in text.splitlines())
        for text, names in families.items()
    )


def _base_config(chosen: argparse.Namespace, asking: bool) -> Config:
    if chosen.config is not None:
        if chosen.recipe is not None:
            raise UsageError("--recipe and --config exclude each other: a configuration file is complete")
        return load(chosen.config)
    if chosen.recipe is not None:
        try:
            return recipe(chosen.recipe)
        except FeedlineError as error:
            raise UsageError(str(error)) from error
    if asking:
        return Config()
    raise UsageError(f"give --recipe NAME ({', '.join(RECIPES)}) or --config FILE")


def _spell_out(argv: Sequence[str]) -> list[str]:
    """Write short forms out: switches (--compile, --no-compile) get a value, --epochs 3 is --duration 3ep."""
    switches = _switches(Options)
    words: list[str] = []
    for i, word in enumerate(argv):
        name, equals, value = (
            word.replace("_", "-").partition("=") if word.startswith("--") else (word, "", "")
        )
        if name in _IN_EPOCHS:
            words += _IN_EPOCHS[name]
            if equals:
                words.append(f"{value}ep")
        elif i and argv[i - 1].replace("_", "-") in _IN_EPOCHS:
            words.append(f"{word}ep")
        elif name.startswith("--no-") and "--" + name[5:] in switches and not equals:
            words += ["--" + name[5:], "False"]
        elif name in switches and not equals and (i + 1 == len(argv) or argv[i + 1] not in _SWITCH_VALUES):
            words += [name, "True"]
        elif name == "--model":  # as timm's own scripts call it
            words.append("--arch" + word[len(name) :])
        else:
            words.append(word)
    return words


def _switches(kind: Any) -> set[str]:
    """Flags of the values that are true or false, in all groups."""
    hints = get_type_hints(kind)
    groups = [_switches(hint) for hint in hints.values() if is_dataclass(hint)]
    own = {f"--{name.replace('_', '-')}" for name, hint in hints.items() if hint in (bool, bool | None)}
    return own.union(*groups)


def flag_names() -> set[str]:
    """All flags, without their dashes."""
    valid = set(flat(Config())) | {f.name for f in fields(Options)} - {"settings", "given"} | {"help"}
    return {name.replace("_", "-") for name in valid} | {name[2:] for name in _IN_EPOCHS} | {"model"}


def _reject_unknown(argv: Sequence[str]) -> None:
    flags = flag_names()
    for word in argv:
        name = word.split("=")[0].replace("_", "-")
        if name.startswith("--") and name[2:] not in flags:
            raise UsageError(f"there is no flag {word.split('=')[0]}; {nearest_flag(name[2:], flags)}")


def _tyro(argv: Sequence[str], default: Options) -> Options:
    """Let tyro read the flags, and make one line of what it has to say against them."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                Options,
                args=argv,
                default=default,
                prog="python -m train",
                description=DESCRIPTION,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
            )
    except SystemExit as error:
        if not error.code:
            raise
        # tyro draws a box around a title, the message, and a pointer to --help.
        lines = [line.strip("│╭╮╰╯─- ") for line in said.getvalue().splitlines()]
        message = " ".join([line for line in lines if line][1:])
        for end in ("Argument helptext", "For full helptext"):
            message = message.split(end)[0].strip()
        raise UsageError(message or said.getvalue().strip()) from error
