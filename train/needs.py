"""Flags that do nothing without another: given on the command line, they are a mistake.

Recipes and configuration files may hold such values: they are waiting for the other one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from timm.optim import get_optimizer_info, list_optimizers

from train.config import Config, flat
from train.schedule import parse_duration


class Need(NamedTuple):
    """Flags, by their keys, and what they need."""

    keys: tuple[str, ...]
    met: Callable[[Config], bool]
    remedy: str


def _on_gpu(config: Config) -> bool:
    return config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())


def _compiles(config: Config) -> bool:
    return _on_gpu(config) if config.step.compile is None else config.step.compile


def _has_momentum(config: Config) -> bool:
    name = config.optim.optimizer  # an unknown one is another error
    return name not in list_optimizers() or get_optimizer_info(name).has_momentum


def _under_torchrun(config: Config) -> bool:
    # An elastic restart may leave one rank of many: no mistake.
    return "WORLD_SIZE" in os.environ


def _lowers(config: Config) -> bool:
    schedule = config.schedule
    return schedule.decay != "constant" or parse_duration(schedule.cooldown).value > 0


NEEDS = (
    Need(("ema_warmup",), lambda c: c.ema.ema_decay > 0, "--ema-decay"),
    Need(("clip_mode",), lambda c: c.clip.clip_grad is not None, "--clip-grad"),
    Need(("mix_prob", "mix_mode", "mix_until"), lambda c: c.mix.enabled, "--mixup or --cutmix"),
    Need(("mix_switch",), lambda c: c.mix.mixup > 0 and c.mix.cutmix > 0, "both --mixup and --cutmix"),
    Need(("freeze_for",), lambda c: bool(c.freeze.freeze), "--freeze"),
    Need(("head_hidden", "head_drop"), lambda c: c.model.head == "mlp", "--head mlp"),
    Need(("model_input", "before", "head_init"), lambda c: c.model.pretrained is not None, "--pretrained"),
    Need(("min_change",), lambda c: c.stop.patience is not None, "--patience"),
    Need(
        ("stop_mode", "stop_metric"),
        lambda c: c.stop.patience is not None or c.stop.target is not None,
        "--patience or --target",
    ),
    Need(("profile_steps",), lambda c: c.telemetry.profile, "--profile"),
    Need(("scale",), lambda c: c.input.crop == "random-resized", "--crop random-resized"),
    Need(("pad",), lambda c: c.input.crop == "pad", "--crop pad"),
    Need(("erase_mode",), lambda c: c.input.erase > 0, "--erase"),
    Need(("window", "lanes"), lambda c: c.input.shuffle == "window", "--shuffle window"),
    Need(
        ("ramp_from", "ramp_to", "ramp_by", "size_multiple"),
        lambda c: c.resolution.start_size is not None,
        "--start-size",
    ),
    Need(
        ("hw_decoder_load",),
        lambda c: _on_gpu(c) and c.input.loader_backend != "torch",
        "a GPU, and DALI (--loader-backend dali)",
    ),
    Need(("compile_mode",), _compiles, "--compile, which is off on a CPU unless given"),
    Need(("compress_grads",), _under_torchrun, "several ranks: torchrun -m train"),
    Need(("decay_every", "decay_factor"), lambda c: c.schedule.decay == "step", "--decay step"),
    Need(("decay_power",), lambda c: c.schedule.decay == "polynomial", "--decay polynomial"),
    Need(("final_lr",), _lowers, "a --decay other than constant, or --cooldown"),
    Need(("warmup_lr", "warmup_shape"), lambda c: parse_duration(c.schedule.warmup).value > 0, "--warmup"),
    Need(("momentum",), _has_momentum, "an --optimizer that has one"),
)


def unmet(given: Iterable[str], config: Config) -> str:
    """Say which of the flags `given` does nothing and what it needs; "" where there is none.

    Args:
        given: keys of the flags on the command line.
        config: what they and the recipe make.
    """
    given, values = set(given), flat(config)
    for need in NEEDS:
        for key in need.keys:
            # A switch that is turned off asks for nothing.
            if key in given and values[key] is not False and not need.met(config):
                return f"--{key.replace('_', '-')} does nothing here: it needs {need.remedy}"
    return ""
