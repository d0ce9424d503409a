"""Which stage limits training: the rule, on figures alone.

Stages occupy resources: the storage, the cores, the link to the device, the device. In a pipeline whose queues hide
what can be hidden, throughput is that of the resource which one image occupies longest, so

- the storage takes `storage_s` per image, measured alone. The loader's counters overrule it: training that waits for
  bytes most of the time goes at the storage's pace, whatever the storage gave to a reader alone (a page cache that the
  measurement itself has filled, for instance);
- copying to the device takes `copy_s`;
- with a GPU, preparing images (decode, resize, augment) takes `prepare_s` and the model `model_s`, side by side;
- without one, both use the same cores: CPU seconds add up, and are divided by the cores that were to be had, which is
  the most that any stage kept busy when it was measured alone. Wait shares say little here: a loop that hardly waits
  may still be slow because decoding takes its cores. The step's own time is a bound besides, where it is unable to use
  all cores.

The resource with the longest time per image limits. Where that is the cores, or the preparation, the stage that takes
the largest part of it is the bottleneck. The verdict is taken in every repeat, the most frequent one counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

BOTTLENECKS = ("storage", "decode", "augment", "host-to-device", "model")
_MOST = 0.5  # share of the time from which on waiting for bytes is the verdict
_LOST = 0.8  # of the rate that the parts promise; below it the hand-over itself loses time


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one image costs, from one repeat. Seconds per image.

    Attributes:
        storage_s: wall, until its bytes are there, nothing else running.
        copy_s: wall, from host to device; 0 where nothing is copied.
        prepare_s: wall, decoding, resizing and augmenting from memory with all threads.
        model_s: wall, of a training step on a batch that is already there.
        read_core_s: CPU, of reading.
        decode_core_s: CPU, of decoding and resizing.
        augment_core_s: CPU, of policies and erasing.
        model_core_s: CPU, of the training step.
        augment_share: of `prepare_s`, where CPU seconds do not tell (decoding on a GPU); 0 … 1.
        cores: that this process may use.
        shared: whether the model computes on these cores, too.
        real_s: wall, of training on real data.
        wait_share: of `real_s`, waiting for the loader; 0 … 1.
        read_wait_share: of `real_s`, waiting for bytes.
    """

    storage_s: float
    copy_s: float = 0.0
    prepare_s: float
    model_s: float
    read_core_s: float = 0.0
    decode_core_s: float
    augment_core_s: float = 0.0
    model_core_s: float
    augment_share: float = 0.0
    cores: int
    shared: bool
    real_s: float
    wait_share: float = 0.0
    read_wait_share: float = 0.0

    @property
    def free_cores(self) -> float:
        """Cores that were to be had: the most that preparing or the model kept busy; 0 … `cores`."""
        prepare = (self.decode_core_s + self.augment_core_s) / self.prepare_s
        model = self.model_core_s / self.model_s if self.shared else 0.0
        return min(float(self.cores), max(prepare, model))

    def times(self) -> dict[str, float]:
        """Seconds that an image occupies each resource: storage, host-to-device, cores or preparing, model."""
        storage = max(self.storage_s, self.real_s if self.read_wait_share >= _MOST else 0.0)
        times = {"storage": storage, "host-to-device": self.copy_s}
        if not self.shared:
            return times | {"preparing": self.prepare_s, "model": self.model_s}
        core_s = self.read_core_s + self.decode_core_s + self.augment_core_s + self.model_core_s
        # The step alone is a bound, too: it may be unable to use all cores.
        return times | {"cores": core_s / self.free_cores, "model": self.model_s}

    def parts(self) -> dict[str, float]:
        """What takes part of the cores (CPU seconds per image) or of preparing (wall seconds), by bottleneck."""
        if self.shared:
            parts = {"storage": self.read_core_s, "decode": self.decode_core_s}
            return parts | {"augment": self.augment_core_s, "model": self.model_core_s}
        return {
            "decode": self.prepare_s * (1 - self.augment_share),
            "augment": self.prepare_s * self.augment_share,
        }

    def bottleneck(self) -> str:
        """One out of `BOTTLENECKS`."""
        times = self.times()
        resource = max(times, key=times.__getitem__)
        if resource not in ("cores", "preparing"):
            return resource
        parts = self.parts()
        return max(parts, key=parts.__getitem__)

    @property
    def possible_s(self) -> float:
        """Seconds per image that the slowest resource takes: what training should reach."""
        return max(self.times().values())


@dataclass(frozen=True, slots=True)
class Verdict:
    """What limits.

    Attributes:
        bottleneck: one out of `BOTTLENECKS`.
        agreeing: repeats that say so.
        repeats: of them.
        possible: images/s that the parts promise, median.
        real: images/s of training, median.
        uneven: whether training stays well below what its parts promise: the hand-over loses time.
    """

    bottleneck: str
    agreeing: int
    repeats: int
    possible: float
    real: float
    uneven: bool


def judge(repeats: Sequence[Costs]) -> Verdict:
    """Verdict over repeats, at least one; among equals that of the earliest repeat."""
    found = Counter(costs.bottleneck() for costs in repeats)
    name, agreeing = found.most_common(1)[0]
    return Verdict(
        bottleneck=name,
        agreeing=agreeing,
        repeats=len(repeats),
        possible=1 / median(costs.possible_s for costs in repeats),
        real=1 / median(costs.real_s for costs in repeats),
        uneven=median(costs.possible_s / costs.real_s for costs in repeats) < _LOST,
    )
