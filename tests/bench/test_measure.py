"""The method: interleaving, medians, ratios within a repeat."""

import subprocess
import sys
import time

import pytest

from bench.measure import cpu_seconds, measure


class Fake:
    """A stage that notes when it ran."""

    def __init__(self, name: str, log: list[str], lead_in: int = 0) -> None:
        self.name, self.title, self.lead_in, self._log = name, name, lead_in, log

    def step(self) -> tuple[int, int]:
        self._log.append(self.name)
        time.sleep(0.002)
        return 10, 1000

    def synchronize(self) -> None:
        self._log.append(f"{self.name} synchronized")

    def close(self) -> None:
        self._log.append(f"{self.name} closed")


def test_every_stage_runs_once_before_any_runs_again_in_rotating_order() -> None:
    log: list[str] = []
    stages = [Fake(name, log) for name in "abc"]
    series = measure(stages, repeats=3, seconds=0.004)
    ends = [entry[0] for entry in log if entry.endswith("synchronized")][::2]  # each run synchronizes twice
    assert ends == list("abc" + "abc" + "bca" + "cab")
    assert all(len(one.images_per_s) == 3 for one in series)


def test_lead_in_is_not_counted() -> None:
    log: list[str] = []
    (one,) = measure([Fake("a", log, lead_in=50)], repeats=1, seconds=0.001)
    assert log.count("a") >= 2 * 50
    # one step of 10 images took 2 ms or more; with the lead-in counted this would be far higher
    assert one.images_per_s[0] <= 10 / 0.002


def test_rates_and_cpu_time_are_per_image() -> None:
    (one,) = measure([Fake("a", [])], repeats=2, seconds=0.05)
    assert 0 < one.rate <= 5000
    assert one.mb_per_s[0] == pytest.approx(one.images_per_s[0] * 100 / 1e6)
    assert one.step_ms[0] >= 2
    assert 0 <= one.cpu_s[0] < 1


def test_the_cpu_time_of_children_is_counted() -> None:
    before = cpu_seconds()
    spin = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        used = cpu_seconds() - before
        child.communicate(b"\n")
    assert used >= 0.25
