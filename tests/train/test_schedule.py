from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler

from shard.errors import FeedlineError
from train.schedule import Duration, Length, ScheduleConfig, lr_at, parse_duration, run_length

LENGTH = Length(steps_per_epoch=100, batch_size=50, steps=1000)


def curve(schedule: ScheduleConfig, steps_per_epoch: int, peak: float = 1.0) -> list[float]:
    length = run_length(schedule, steps_per_epoch * 10, 10)
    return [lr_at(step, peak, schedule, length) for step in range(length.steps)]


@pytest.mark.parametrize(
    ("text", "duration", "steps"),
    [
        ("90ep", Duration(90, "ep"), 9000),
        ("0.5 epochs", Duration(0.5, "ep"), 50),
        ("5kst", Duration(5000, "st"), 5000),
        ("7steps", Duration(7, "st"), 7),
        ("1.2Msa", Duration(1.2e6, "sa"), 24000),
        ("130samples", Duration(130, "sa"), 3),
        ("6%", Duration(6, "%"), 60),
    ],
)
def test_durations(text: str, duration: Duration, steps: int) -> None:
    assert parse_duration(text) == duration
    assert parse_duration(text).steps(LENGTH) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("90", r"warmup is '90', which has no unit"),
        ("90epo", r"no unit 'epo'; did you mean '90ep"),
        ("5ksteqs", r"no unit 'steqs'; did you mean '5ksteps'"),
        ("1d", r"no unit 'd'; units are ep, st, sa and %"),
        ("-3ep", r"warmup is '-3ep'; give a number and a unit"),
        ("", "give a number and a unit"),
    ],
)
def test_what_is_no_duration(text: str, message: str) -> None:
    with pytest.raises(FeedlineError, match=message):
        parse_duration(text, "warmup")


@given(st.integers(1, 500), st.integers(1, 64), st.floats(0.1, 50))
def test_a_run_begins_as_many_epochs_as_it_touches(per_epoch: int, batch: int, epochs: float) -> None:
    schedule = ScheduleConfig(duration=f"{max(1, round(per_epoch * epochs))}st", warmup="0st")
    length = run_length(schedule, per_epoch * batch + batch - 1, batch)
    assert length.steps_per_epoch == per_epoch
    assert (length.epochs - 1) * per_epoch < length.steps <= length.epochs * per_epoch


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"duration": "4ep", "warmup": "5ep"}, "warmup is '5ep' and cooldown '0ep'.*duration '4ep'"),
        ({"duration": "4ep", "warmup": "60%", "cooldown": "50%"}, "together longer than"),
        ({"duration": "50%"}, "share of itself"),
        ({"duration": "0ep"}, "no whole step"),
        ({"final_lr": -1.0}, "final_lr is -1.0"),
        ({"decay_every": "1x"}, "decay_every is '1x'"),
    ],
)
def test_schedules_without_room_are_errors(given: dict[str, object], message: str) -> None:
    with pytest.raises(FeedlineError, match=message):
        ScheduleConfig(**given)  # type: ignore[arg-type]


def test_what_shows_only_with_the_dataset() -> None:
    schedule = ScheduleConfig(duration="100st", warmup="5ep")
    assert run_length(schedule, 100, 10).steps == 100
    with pytest.raises(FeedlineError, match="warmup is '5ep'"):
        run_length(schedule, 1000, 10)


def test_lr_warms_up_linearly_to_the_peak() -> None:
    schedule = ScheduleConfig(duration="4ep", warmup="1ep", decay="cosine")
    assert curve(schedule, 5)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    schedule = ScheduleConfig(duration="4ep", warmup="5st", warmup_lr=0.5)
    assert curve(schedule, 5)[:5] == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])


def test_lr_follows_the_cosine() -> None:
    schedule = ScheduleConfig(duration="4ep", warmup="0ep", decay="cosine", final_lr=0.1)
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * s / 20)) / 2 for s in range(20)]
    assert curve(schedule, 5) == pytest.approx(expected)


def test_warmup_and_linear_decay_make_a_triangle() -> None:
    values = curve(ScheduleConfig(duration="3ep", warmup="0.5ep", decay="linear"), 4, peak=2.0)
    assert values[:3] == pytest.approx([1.0, 2.0, 2.0])
    assert [a - b for a, b in pairwise(values[2:])] == pytest.approx([0.2] * 9)
    assert values[-1] == pytest.approx(0.2)  # one drop above final_lr: no step is wasted on lr 0


def test_one_cycle_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=101, pct_start=30 / 101)
    expected = []
    for _ in range(101):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    schedule = ScheduleConfig(
        duration="10ep", warmup="29st", warmup_lr=1 / 25, warmup_shape="cosine", final_lr=1 / 25e4
    )
    values = curve(schedule, 10)
    # Torch's rise begins one step earlier, at its lowest value, and its fall ends one later, at its lowest.
    assert values[:29] == pytest.approx(expected[1:30])
    assert values[29:] == pytest.approx(expected[29:100])


def test_step_polynomial_and_constant() -> None:
    steps = ScheduleConfig(duration="9ep", warmup="0ep", decay="step", decay_every="3ep", decay_factor=0.1)
    assert curve(steps, 2) == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 6)
    power = ScheduleConfig(duration="10ep", warmup="0ep", decay="polynomial", decay_power=3)
    assert curve(power, 1) == pytest.approx([(1 - s / 10) ** 3 for s in range(10)])
    assert curve(ScheduleConfig(duration="5ep", warmup="0ep", decay="constant"), 1) == [1.0] * 5


def test_cooldown_after_a_constant_rate_is_a_trapezoid_and_after_a_cosine_stays_low() -> None:
    trapezoid = ScheduleConfig(duration="10ep", warmup="20%", decay="constant", cooldown="50%")
    assert curve(trapezoid, 1) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    flat = curve(ScheduleConfig(duration="10ep", warmup="0ep", cooldown="4ep", final_lr=0.25), 1)
    assert flat[6:] == [0.25] * 4
    assert flat[5] > 0.25


def test_decay_from_start_is_timms_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    timms = CosineLRScheduler(optimizer, t_initial=100, lr_min=0.01, warmup_t=5, warmup_lr_init=0.1)
    schedule = ScheduleConfig(
        duration="100ep", warmup="5ep", warmup_lr=0.1, decay_from_start=True, final_lr=0.01
    )
    values = curve(schedule, 1)
    assert values[:5] == pytest.approx(
        [timms._get_lr(t + 1)[0] if t < 4 else 1.0 for t in range(5)], rel=1e-2
    )
    assert values[5:] == pytest.approx([timms._get_lr(t)[0] for t in range(5, 100)])


@given(
    st.sampled_from(["cosine", "linear", "polynomial", "step", "constant"]),
    st.booleans(),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_lr_never_leaves_its_bounds_and_depends_on_the_step_alone(
    decay: str, early: bool, warmup: int, cooldown: int
) -> None:
    schedule = ScheduleConfig(
        duration="70st",
        warmup=f"{warmup}st",
        cooldown=f"{cooldown}st",
        decay=decay,  # type: ignore[arg-type]
        decay_from_start=early,
        final_lr=0.01,
    )
    length = run_length(schedule, 70, 10)
    forwards = [lr_at(s, 0.3, schedule, length) for s in range(70)]
    assert forwards == [lr_at(s, 0.3, schedule, length) for s in reversed(range(70))][::-1]
    assert np.all(np.diff(forwards[:warmup]) > 0)
    assert np.all(np.diff(forwards[warmup:]) <= 1e-12)
    assert all(0 < lr <= 0.3 for lr in forwards)
    assert min(forwards[warmup:]) >= 0.01 - 1e-12
