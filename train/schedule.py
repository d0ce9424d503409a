"""Durations ("90ep", "5000st", "1.2Msa", "6%"), the length of a run, and the learning rate of each step."""

from __future__ import annotations

import difflib
import functools
import math
import re
from dataclasses import dataclass
from typing import Literal

from shard.errors import FeedlineError

_UNITS = {
    **dict.fromkeys(("ep", "epoch", "epochs"), "ep"),
    **dict.fromkeys(("st", "step", "steps"), "st"),
    **dict.fromkeys(("sa", "sample", "samples"), "sa"),
    "%": "%",
}
_TIMES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_TEXT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kMG]?)\s*([a-zA-Z%]*)")


@dataclass(frozen=True, slots=True)
class Duration:
    """A stretch of training.

    Attributes:
        value: how many units.
        unit: "ep" (epochs), "st" (optimiser steps), "sa" (samples), or "%" of the whole training.
    """

    value: float
    unit: str

    def steps(self, length: Length) -> int:
        """Optimiser steps that it takes in a run of that length, rounded."""
        if self.unit == "ep":
            return round(self.value * length.steps_per_epoch)
        if self.unit == "sa":
            return round(self.value / length.batch_size)
        return round(self.value if self.unit == "st" else self.value / 100 * length.steps)


@functools.cache
def parse_duration(text: str, name: str = "duration") -> Duration:
    """Understand "90ep", "5000st" or "5kst", "1.2Msa", "6%"; units may be spelled out ("epochs").

    Args:
        text: a number, perhaps with k, M or G (10³, 10⁶, 10⁹), and a unit.
        name: of the key, for the error.

    Raises:
        FeedlineError: something else; names the nearest unit.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise FeedlineError(
            f"{name} is {text!r}; give a number and a unit, such as 90ep, 5000st, 1.2Msa or 6%"
        )
    number, times, unit = match.groups()
    if unit not in _UNITS:
        near = difflib.get_close_matches(unit.lower(), _UNITS, n=1, cutoff=0.4)
        hint = f"did you mean '{number}{times}{near[0]}'?" if near else "units are ep, st, sa and %"
        raise FeedlineError(
            f"{name} is {text!r}, which has {f'no unit {unit!r}' if unit else 'no unit'}; {hint}"
        )
    return Duration(float(number) * _TIMES[times], _UNITS[unit])


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run is.

    Attributes:
        steps_per_epoch: optimiser steps of a whole epoch.
        batch_size: samples of a step, of all ranks together.
        steps: optimiser steps of the whole run.
    """

    steps_per_epoch: int
    batch_size: int
    steps: int

    @property
    def epochs(self) -> int:
        """Epochs that the run begins; the last may be cut short."""
        return -(-self.steps // self.steps_per_epoch)

    def of(self, text: str, name: str = "duration") -> int:
        """Steps of a duration given as text.

        Raises:
            FeedlineError: it is none; names the key.
        """
        return parse_duration(text, name).steps(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Length of the training and course of the learning rate: warm-up, decay, cool-down.

    Durations: 90ep (epochs), 5000st or 5kst (steps), 1.2Msa (samples), 6% (of the training).
    """

    duration: str = "90ep"
    """Of the whole training; --epochs N is short for --duration Nep."""
    warmup: str = "5ep"
    """Rise from warmup_lr to the peak; --warmup-epochs N is short for --warmup Nep."""
    warmup_lr: float = 0.0
    """Learning rate that the warm-up rises from; the first step is already one rise above it."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """Course of the warm-up; cosine and decay cosine make the one-cycle schedule."""
    decay: Literal["cosine", "linear", "polynomial", "step", "constant"] = "cosine"
    """Course from the peak to final_lr. Warm-up and linear decay make the triangular schedule."""
    decay_from_start: bool = False
    """Count the decay from step 0, as timm and DeiT do: the warm-up then hides its beginning."""
    decay_power: float = 2.0
    """polynomial: exponent of what is left."""
    decay_every: str = "30ep"
    """step: after how long the learning rate falls, again and again."""
    decay_factor: float = 0.1
    """step: what it is multiplied with."""
    cooldown: str = "0ep"
    """Last stretch: straight from where the decay ended to final_lr."""
    final_lr: float = 0.0
    """Learning rate that the decay ends at."""

    def __post_init__(self) -> None:
        """Reject what is no duration, and a schedule without room."""
        for name in ("duration", "warmup", "decay_every", "cooldown"):
            parse_duration(getattr(self, name), name)
        units = {parse_duration(text).unit for text in (self.duration, self.warmup, self.cooldown)}
        if units <= {"ep", "%"}:  # then it shows without knowing the dataset
            run_length(self, 10_000_000, 1000)
        for name in ("warmup_lr", "final_lr", "decay_power", "decay_factor"):
            if not getattr(self, name) >= 0:
                raise FeedlineError(f"{name} is {getattr(self, name)}; it must not be negative")


def run_length(schedule: ScheduleConfig, samples: int, batch_size: int) -> Length:
    """Length of a run on a split of so many samples.

    Raises:
        FeedlineError: no step at all, or warm-up and cool-down are longer than the run.
    """
    per_epoch = samples // batch_size
    duration = parse_duration(schedule.duration, "duration")
    if duration.unit == "%":
        raise FeedlineError(
            f"duration is {schedule.duration!r}; the whole cannot be a share of itself: give ep, st or sa"
        )
    length = Length(per_epoch, batch_size, duration.steps(Length(per_epoch, batch_size, 0)))
    if length.steps < 1:
        raise FeedlineError(
            f"duration is {schedule.duration!r}, which is no whole step of {batch_size} samples"
        )
    ends = length.of(schedule.warmup, "warmup") + length.of(schedule.cooldown, "cooldown")
    if ends > length.steps:
        raise FeedlineError(
            f"warmup is {schedule.warmup!r} and cooldown {schedule.cooldown!r}, together longer than the duration "
            f"{schedule.duration!r}"
        )
    return length


def lr_at(step: int, peak: float, schedule: ScheduleConfig, length: Length) -> float:
    """Learning rate of step 0, 1, … of the whole training; depends on nothing else.

    The warm-up of W steps ends with `peak` at step W - 1; after it the decay starts at `peak` and would
    reach `final_lr` one step after the last.
    """
    warmup = length.of(schedule.warmup, "warmup")
    if step < warmup:
        rise = (step + 1) / warmup
        if schedule.warmup_shape == "cosine":
            rise = (1 - math.cos(math.pi * rise)) / 2
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * rise
    cooldown = length.of(schedule.cooldown, "cooldown")
    end = length.steps - cooldown
    if step < end:
        return _decayed(step, warmup, end, peak, schedule, length)
    start = _decayed(end, warmup, end, peak, schedule, length)
    return start + (schedule.final_lr - start) * (step - end) / cooldown


def _decayed(
    step: int, warmup: int, end: int, peak: float, schedule: ScheduleConfig, length: Length
) -> float:
    start = 0 if schedule.decay_from_start else warmup
    if schedule.decay == "constant":
        return peak
    if schedule.decay == "step":
        every = max(1, length.of(schedule.decay_every, "decay_every"))
        falls = (step - start) // every
        lowered: float = peak * schedule.decay_factor**falls
        return max(schedule.final_lr, lowered)
    progress = (step - start) / max(1, end - start)
    if schedule.decay == "cosine":
        left = (1 + math.cos(math.pi * progress)) / 2
    else:
        left = (1 - progress) ** (schedule.decay_power if schedule.decay == "polynomial" else 1.0)
    return schedule.final_lr + (peak - schedule.final_lr) * left
