"""The search space: `lr=log(1e-4,1) batch-size=choice(64,128) epochs=int(2,5)` → dimensions."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import optuna

from shard.errors import FeedlineError
from train.naming import nearest_flag

Value: TypeAlias = float | int | str
Kind = Literal["log", "uniform", "int", "choice"]

_FORM = (
    "give NAME=log(a,b), uniform(a,b), int(a,b[,step]) or choice(a,b,…), in quotes for the shell's sake, or with a "
    "colon for the parentheses: lr=log:1e-4,1"
)
# Parentheses may hold spaces, so that a list can stand in one pair of quotes.
_ITEM = re.compile(r"\s*([^\s=]+)=(\w+)(?:\(([^()]*)\)|:(\S+))(?=\s|$)")
_SETTLED = {  # what a study decides itself, and why
    "run-dir": "every trial has its own run folder",
    "data": "results on different data say nothing about each other",
    "resume": "trials go on by themselves",
    "recipe": "it decides which flags make sense; make a study for each",
    "config": "it decides which flags make sense; make a study for each",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One flag, and the values that it may take.

    Attributes:
        flag: of the training, without its dashes.
        kind: how values are drawn: log-uniformly, uniformly, whole numbers, or one of a list.
        low: least value; of numbers alone.
        high: greatest value.
        step: between whole numbers.
        choices: of kind "choice" alone.
    """

    flag: str
    kind: Kind
    low: float = 0
    high: float = 0
    step: int = 1
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The text that gives this dimension."""
        numbers = f"{self.low:.12g},{self.high:.12g}" + (f",{self.step}" if self.step != 1 else "")
        return f"{self.flag}={self.kind}({','.join(self.choices) if self.kind == 'choice' else numbers})"

    def suggest(self, trial: optuna.Trial) -> Value:
        """Value of a trial; the same whenever it is asked for."""
        if self.kind == "choice":
            chosen: str = trial.suggest_categorical(self.flag, self.choices)
            return chosen
        if self.kind == "int":
            whole: int = trial.suggest_int(self.flag, int(self.low), int(self.high), step=self.step)
            return whole
        number: float = trial.suggest_float(self.flag, self.low, self.high, log=self.kind == "log")
        return number

    def corner(self, number: int) -> Value:
        """An extreme value: the least, the greatest, in turn; or each choice in turn."""
        if self.kind == "choice":
            return self.choices[number % len(self.choices)]
        value = (self.low, self.high)[number % 2]
        return int(value) if self.kind == "int" else value

    @property
    def corners(self) -> int:
        """How many corners there are."""
        return max(2, len(self.choices))

    def words(self, value: Value) -> list[str]:
        """The value on the command line of a training; one that has spaces is several words, as of --scale 0.1 1."""
        return [f"--{self.flag}", *(str(value).split() if isinstance(value, str) else [repr(value)])]


def parse_search(words: Sequence[str], flags: Collection[str]) -> tuple[Dimension, ...]:
    """Read what follows --search.

    Args:
        words: one or several dimensions each.
        flags: that the training has, without dashes.

    Raises:
        FeedlineError: nothing, not of that form, an unknown flag, or an empty range; says which.
    """
    found: dict[str, Dimension] = {}
    for word in words:
        at = 0
        while at < len(word.rstrip()):
            match = _ITEM.match(word, at)
            if match is None:
                raise FeedlineError(f"--search has {word[at:].strip()!r}; {_FORM}")
            at = match.end()
            name, kind, inside, bare = match.groups()
            flag = _flag(name, flags)
            if flag in found:
                raise FeedlineError(f"--search has {flag} twice; give each flag one range")
            found[flag] = _dimension(flag, kind, inside if inside is not None else bare, match[0].strip())
    if not found:
        raise FeedlineError(f"--search is empty; {_FORM}")
    return tuple(found.values())


_SHORT = {
    "epochs": {"duration"},
    "warmup-epochs": {"warmup"},
    "freeze-epochs": {"freeze", "freeze-for"},
    "model": {"arch"},
}


def keys_of(flag: str) -> set[str]:
    """What a flag sets: --epochs is short for --duration, --no-compile sets what --compile does."""
    name = flag.partition("=")[0].lstrip("-").replace("_", "-")
    return _SHORT.get(name, {name})


def require_free(space: Iterable[Dimension], given: Sequence[str]) -> None:
    """Reject a flag that is both searched and given.

    Args:
        space: what is searched.
        given: words of the training's command line.
    """
    words = {key for word in given if word.startswith("--") for key in keys_of(word)}
    seen: dict[str, str] = {}
    for one in space:
        for key in sorted(keys_of(one.flag)):
            if key in words or f"no-{key}" in words:
                raise FeedlineError(f"--{one.flag} is both searched and given; leave one out")
            if key in seen:
                raise FeedlineError(
                    f"--search has {seen[key]} and {one.flag}, which set the same; leave one out"
                )
            seen[key] = one.flag


def _flag(name: str, flags: Collection[str]) -> str:
    flag = name.lstrip("-").replace("_", "-")
    if flag not in flags:
        raise FeedlineError(f"--search has {name}, and there is no such flag; {nearest_flag(flag, flags)}")
    if flag in _SETTLED:
        raise FeedlineError(f"--search has {name}: {_SETTLED[flag]}; leave it out")
    return flag


def _dimension(flag: str, kind: str, inside: str, text: str) -> Dimension:
    parts = [part.strip() for part in inside.split(",")]
    if kind == "choice":
        if len(set(parts)) < 2 or "" in parts or len(set(parts)) != len(parts):
            raise FeedlineError(f"--search has {text}; a choice is of two or more different values")
        # As the training's flags have them.
        parts = [{"true": "True", "false": "False"}.get(part.lower(), part) for part in parts]
        return Dimension(flag=flag, kind="choice", choices=tuple(parts))
    if kind not in ("log", "uniform", "int"):
        raise FeedlineError(f"--search has {text}; {_FORM}")
    try:
        numbers = [int(part) if kind == "int" else float(part) for part in parts]
    except ValueError:
        of = "whole numbers" if kind == "int" else "numbers"
        raise FeedlineError(f"--search has {text}; {kind} takes {of}") from None
    if len(numbers) != 2 and not (kind == "int" and len(numbers) == 3):
        raise FeedlineError(
            f"--search has {text}; {kind} takes {'two or three' if kind == 'int' else 'two'} numbers"
        )
    low, high, step = numbers[0], numbers[1], int(numbers[2]) if len(numbers) == 3 else 1
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise FeedlineError(f"--search has {text}; the first number must be less than the second")
    if kind == "log" and low <= 0:
        raise FeedlineError(f"--search has {text}; a logarithmic range lies above 0")
    if kind == "int":
        if step < 1 or low + step > high:
            raise FeedlineError(f"--search has {text}; the step must be 1 … {int(high - low)}")
        high = low + (high - low) // step * step
        return Dimension(flag=flag, kind="int", low=low, high=high, step=step)
    return Dimension(flag=flag, kind="log" if kind == "log" else "uniform", low=low, high=high)
