from __future__ import annotations

import time

import pytest
import torch

from train.meter import Meter, Timeline

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    at = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: at[0])
    return at


def steps(meter: Meter, now: list[float], count: int, data: float, rest: float) -> None:
    for _ in range(count):
        now[0] += data
        meter.mark("data")
        now[0] += rest
        meter.mark("forward_backward")
        meter.count()


def test_counts_steps_after_the_warmup_and_no_time_between(now: list[float]) -> None:
    meter = Meter(CPU, warmup=2)
    meter.start()
    steps(meter, now, 2, 100.0, 100.0)  # warm-up
    steps(meter, now, 3, 0.5, 1.5)
    meter.stop()
    now[0] += 50  # not a step
    meter.start()
    steps(meter, now, 1, 0.5, 3.5)
    meter.stop()
    rate = meter.report()
    assert (rate.steps, rate.seconds, rate.phases) == (4, 10.0, {"data": 2.0, "forward_backward": 8.0})
    assert rate.images_per_s(20) == 8.0
    assert rate.wait_share == 0.2
    assert meter.report().images_per_s(20) is None
    assert meter.total.images_per_s(20) == 8.0


def test_knows_nothing_during_the_warmup() -> None:
    meter = Meter(CPU, warmup=3)
    meter.count()
    meter.stop()
    assert meter.report().images_per_s(8) is None


def test_evaluation_and_checkpoints_are_measured_apart(now: list[float]) -> None:
    meter = Meter(CPU, warmup=0)
    steps(meter, now, 1, 1.0, 1.0)
    meter.stop()
    for phase, seconds in (("evaluation", 5.0), ("checkpoint", 0.5), ("checkpoint", 0.25)):
        with meter.aside(phase):
            now[0] += seconds
    steps(meter, now, 1, 1.0, 1.0)
    meter.stop()
    rate = meter.report()
    assert (rate.steps, rate.seconds) == (2, 4.0)
    assert rate.phases["evaluation"] == 5.0
    assert rate.phases["checkpoint"] == 0.75


class Queue:
    """A device that works through its queue while the host goes on; events are as CUDA's."""

    def __init__(self) -> None:
        self.host = self.free_at = 0.0

    def work(self, seconds: float) -> None:
        self.free_at = max(self.free_at, self.host) + seconds

    def event(self) -> Moment:
        return Moment(self)


class Moment:
    def __init__(self, queue: Queue) -> None:
        self.queue, self.at = queue, 0.0

    def record(self) -> None:
        self.at = max(self.queue.free_at, self.queue.host)

    def elapsed_time(self, end: Moment) -> float:
        return 1000 * (end.at - self.at)


@pytest.mark.parametrize(("fetch_s", "idle_s"), [(0.9, 0.0), (1.5, 0.5)])
def test_on_a_device_only_idle_time_counts_as_waiting(fetch_s: float, idle_s: float) -> None:
    """The host waits for each batch, but the device has work for a second meanwhile."""
    queue = Queue()
    line = Timeline(queue.event)
    for step in range(11):
        queue.host += fetch_s
        if step == 0:
            line.start()  # the queue is as in the middle of training
        line.mark("data")
        queue.work(0.9)
        line.mark("forward_backward")
        queue.work(0.1)
        line.mark("optimiser")
        line.read()
    seconds = line.read()
    assert seconds["data"] == pytest.approx(10 * idle_s)
    assert seconds["forward_backward"] == pytest.approx(9.9)
    assert seconds["optimiser"] == pytest.approx(1.1)


@pytest.mark.gpu
def test_cuda_events() -> None:
    meter = Meter(torch.device("cuda"), warmup=0)
    x = torch.rand(4096, 4096, device="cuda")
    meter.start()
    for _ in range(3):
        meter.mark("data")
        x = x @ x * 1e-3
        meter.mark("forward_backward")
        meter.count()
    torch.cuda.synchronize()
    meter.stop()
    rate = meter.report()
    assert 0 < rate.phases["forward_backward"] <= rate.seconds
    assert rate.phases["data"] < rate.phases["forward_backward"]
