"""The configuration of a run, its file, and its comparison with that of an earlier run."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from shard.errors import FeedlineError
from train.checkpoint import SaveConfig
from train.distributed import RanksConfig
from train.ema import EmaConfig
from train.evaluate import EvalConfig
from train.freeze import FreezeConfig
from train.inputs import InputConfig
from train.losses import LossConfig
from train.mix import MixConfig
from train.model import ModelConfig
from train.naming import nearest
from train.optim import ClipConfig, OptimConfig
from train.resolution import ResolutionConfig
from train.schedule import ScheduleConfig
from train.step import StepConfig
from train.stop import StopConfig
from train.telemetry import TelemetryConfig

T = TypeVar("T")

# What may change when a run goes on: where and how fast it computes, not what.
FREE = frozenset(("recipe", "data", "run_dir", "device", "log_every", "checkpoint_every"))
FREE |= {"trackers", "profile", "profile_steps", "before"}
FREE |= {"patience", "min_change", "stop_metric", "stop_mode", "target"}
FREE |= {"keep_last", "join_timeout_s", "timeout_s", "lost_after_s"}
FREE |= {"accumulate", "compile", "compile_mode", "grad_checkpointing"}
FREE |= {"loader_backend", "loader_threads", "hw_decoder_load", "max_bad", "cache", "cache_gb"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a run depends on. Names are unique over all groups."""

    recipe: str = "none"
    """Recipe that gives the defaults; see --list-recipes."""
    data: str | None = None
    """Dataset made by `python -m shard build` or `index`: a folder, or a URL such as s3://bucket/dataset."""
    run_dir: Path | None = None
    """Where config, metrics and checkpoints go; default: runs/RECIPE."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a CUDA GPU where there is one."""
    seed: int = 0
    """Of the weights, the order of samples and the augmentation."""
    synthetic: bool = False
    """One batch of noise that stays on the device: the upper bound of images/s. No evaluation, no checkpoint."""
    log_every: int = 50
    """Steps between two lines of metrics; where an epoch has fewer, each ends with one instead."""
    input: InputConfig = field(default_factory=InputConfig)
    resolution: ResolutionConfig = field(default_factory=ResolutionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    step: StepConfig = field(default_factory=StepConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)

    def __post_init__(self) -> None:
        """Reject an interval that never ends, and groups that do not go together; complete --deterministic."""
        if self.step.deterministic and self.input.hw_decoder_load is None:
            # The engine rounds otherwise than the kernels, and which share is fastest differs from run to run.
            object.__setattr__(self, "input", dataclasses.replace(self.input, hw_decoder_load=0.0))
        if self.log_every < 1:
            raise FeedlineError(f"log_every is {self.log_every}; it must be at least 1")
        if self.mix.enabled and self.mix.mix_mode == "elem":
            for name, once in (("repeats", 1), ("balance", 0)):
                if getattr(self.input, name) > once:
                    raise FeedlineError(
                        f"mix_mode is 'elem' and {name} {getattr(self.input, name)}: a sample's repeats would all mix "
                        "alike; use mix_mode batch"
                    )


def flat(config: Any) -> dict[str, Any]:
    """Values by name, without the groups."""
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        values.update(flat(value) if dataclasses.is_dataclass(value) else {entry.name: value})
    return values


def differences(saved: Config, now: Config) -> list[str]:
    """What has changed, of what must not when a run goes on, as "name: saved → now"."""
    before, after = flat(saved), flat(now)
    fixed = [k for k in after if k not in FREE and not (k in ("mean", "std") and after[k] is None)]
    return [f"{k}: {before[k]} → {after[k]}" for k in fixed if before[k] != after[k]]


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain values, for YAML and checkpoints."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def from_dict(kind: type[T], values: Any, source: str, group: str = "") -> T:
    """Make a config dataclass of plain values; what is not given keeps its default.

    Args:
        kind: the dataclass.
        values: what was read.
        source: where, for error messages.
        group: dotted name of the group, ending in a dot.

    Raises:
        FeedlineError: an unknown key, with the nearest valid name, or a value of a wrong type.
    """
    if not isinstance(values, dict):
        raise FeedlineError(
            f"{source}: {group.rstrip('.') or 'the file'} is {values!r}; expected keys with values"
        )
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise FeedlineError(f"{source}: there is no key {group}{key}; {nearest(str(key), hints)}")
    made = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            made[key] = from_dict(hints[key], value, source, f"{group}{key}.")
        else:
            made[key] = _convert(value, hints[key], f"{source}: {group}{key}")
    return kind(**made)


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Give `value` the type `hint`, as far as YAML blurs types; otherwise an error."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # "X | None"
        return None if value is None else _convert(value, args[0], name)
    if origin is Literal and value in args:
        return value
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        return tuple(_convert(v, a, name) for v, a in zip(value, args, strict=True))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) in (int, float, str):
        try:
            return float(value)  # YAML 1.1 takes 1e-4 for a string
        except ValueError:
            pass
    if type(value) is hint:
        return value
    expected = f"one of {', '.join(map(str, args))}" if origin is Literal else getattr(hint, "__name__", "")
    if origin is tuple:
        expected = f"a list of {len(args)} numbers"
    raise FeedlineError(f"{name} is {value!r}; expected {expected}")


def load(path: Path) -> Config:
    """Read a configuration file, such as the config.yaml of an earlier run.

    Raises:
        FeedlineError: missing, not YAML, an unknown key or a wrong value.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FeedlineError(f"cannot read the configuration {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise FeedlineError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return from_dict(Config, values, str(path))


def save(config: Config, path: Path) -> None:
    """Write a configuration file that `load` reads back."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
    aside.replace(path)
