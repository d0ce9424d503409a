"""`python -m bench peers`: check that everybody does the same work, measure interleaved, and make a record."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.intervals import ratio_interval
from bench.measure import Series, measure
from bench.page_cache import state
from bench.peers import OURS, PEERS, entry
from bench.peers.augment import operations_per_image, resolve
from bench.peers.base import Job
from bench.peers.isolated import Isolated
from bench.peers.probe import antialiased, differences, make_probes
from loader import RandomResizedCrop
from shard.dataset import Dataset
from shard.errors import FeedlineError
from train.environment import environment

_TEXTURE_IMAGES = 512
_LEVELS = 12.0  # difference of the mean, in grey levels, that is more than chance
_DETAIL = (0.8, 1.25)  # detail relative to ours, outside of which it is worth a note


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What to measure.

    Attributes:
        data: dataset folder.
        split: name of the split.
        size: side of the crops, pixels.
        batch_size: images per batch.
        threads: CPU threads or worker processes of everyone.
        repeats: of the whole, interleaved.
        seconds: per peer and repeat.
        only: names of peers; ours is always measured.
        augment: augmentation policy by name; None: crop and flip alone.
    """

    data: Path
    split: str = "train"
    size: int = 224
    batch_size: int = 64
    threads: int
    repeats: int = 5
    seconds: float = 3.0
    only: tuple[str, ...] = tuple(PEERS)
    augment: str | None = None


def compare(contest: Contest, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """Check and measure; what is not installed or fails is left out and listed.

    Returns:
        The record, JSON-able: see docs/benchmarks.md.

    Raises:
        FeedlineError: an unknown peer or policy, no such dataset, a dataset smaller than a batch, or ours does not
            work.
    """
    for name in contest.only:
        entry(name)
    augment = resolve(contest.augment) if contest.augment is not None else None
    split = Dataset.open(contest.data).split(contest.split)
    samples, size_bytes = len(split), sum(split.shard_bytes)
    if samples < contest.batch_size:
        raise FeedlineError(
            f"{contest.data} has {samples} images in split {contest.split}, less than a batch of "
            f"{contest.batch_size}; take a smaller --batch-size"
        )
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedline-peers-")))
        job = Job(
            data=contest.data.absolute(), split=contest.split, crop=RandomResizedCrop(size=contest.size),
            batch_size=contest.batch_size, device=device, threads=contest.threads, scratch=scratch, augment=augment,
        )  # fmt: skip
        say("making probe images")
        field = _Field(contest, job, make_probes(scratch, contest.size), stack, say)
        for name in contest.only:
            if name != OURS:
                field.duel(name)
        rows = field.rows()
    return {
        "benchmark": "peers",
        "environment": environment(device),
        "settings": {
            "dataset": str(contest.data), "split": contest.split, "samples": samples,
            "shards": len(split.shards), "size": contest.size,
            "batch_size": contest.batch_size, "threads": contest.threads, "device": str(device), "augment": augment,
            "repeats": contest.repeats, "seconds": contest.seconds, "page_cache": state(size_bytes),
        },
        "peers": rows,
        "left_out": field.left_out,
    }  # fmt: skip


class _Field:
    """Ours against one peer after the other, interleaved: a dozen loaders at a time do not fit in memory."""

    def __init__(
        self, contest: Contest, job: Job, probes: Path, stack: ExitStack, say: Callable[[str], None]
    ) -> None:
        self._contest, self._job, self._probes, self._say = contest, job, probes, say
        self._texture: dict[str, float] | None = None
        self._operations: float | None = None
        self.left_out: list[dict[str, str]] = []
        self._rows: list[dict[str, Any]] = []
        say(f"checking: {entry(OURS).title}")
        self._ours = Isolated(OURS, job)
        stack.callback(self._ours.close)
        self._about = self._check(OURS, self._ours)
        self._series = Series(self._ours.name, self._ours.title)

    def duel(self, name: str) -> None:
        """Check a peer and measure it beside ours, or say why not."""
        found = entry(name)
        why = self._why_not(name)
        if why is None:
            self._say(f"checking: {found.title}")
            stage = Isolated(name, self._job)
            try:
                about = self._check(name, stage)
                ours, theirs = self._measure([self._ours, stage])
            except FeedlineError as error:
                why = str(error)
            else:
                self._rows.append({**about, **_figures(theirs, ours)})
                self._series.images_per_s += ours.images_per_s
                self._series.cpu_s += ours.cpu_s
            finally:
                stage.close()
        if why is not None:
            self._say(f"left out: {found.title}: {why}")
            self.left_out.append({"name": name, "title": found.title, "why": why})

    def rows(self) -> list[dict[str, Any]]:
        """What was measured, ours first, with its measurements beside all the others."""
        if not self._series.images_per_s:
            (self._series,) = self._measure([self._ours])
        return [{**self._about, **_figures(self._series, self._series)}, *self._rows]

    def _measure(self, stages: list[Isolated]) -> list[Series]:
        return measure(stages, self._contest.repeats, self._contest.seconds, self._say)

    def _why_not(self, name: str) -> str | None:
        found, augment = entry(name), self._job.augment
        if found.missing:
            return f"not installed ({found.missing[0]})"
        if augment is not None and augment.split("-")[0] not in found.policies:
            return f"has no {augment.split('-')[0]!r} augmentation of its own"
        shards, threads = len(self._job.open().shards), self._job.threads
        if found.whole_shards and shards < threads:
            return f"deals whole shards to its workers, and there are {shards} for {threads}: smaller --shard-bytes"
        return None

    def _check(self, name: str, stage: Isolated) -> dict[str, Any]:
        probed = stage.examine(self._probes)
        stage.make()
        texture = stage.texture(_TEXTURE_IMAGES)
        notes = differences(probed)
        ours = self._texture = self._texture or texture
        operations = operations_per_image(self._job.augment, entry(name).operations)
        if abs(texture["mean"] - ours["mean"]) > _LEVELS:
            notes.append(f"mean grey level {texture['mean']:.0f}, ours {ours['mean']:.0f}")
        if not _DETAIL[0] <= texture["detail"] / ours["detail"] <= _DETAIL[1]:
            notes.append(f"detail {texture['detail'] / ours['detail']:.2f} × ours")
        own = self._operations = operations if name == OURS else self._operations
        if operations is not None and own is not None and abs(operations - own) > 0.02:
            notes.append(f"{operations:.2f} operations per image, ours {own:.2f}")
        return {
            "name": name,
            "title": entry(name).title,
            "versions": entry(name).versions(),
            "output": stage.output,
            "note": stage.note,
            "antialias": antialiased(probed),
            "operations_per_image": operations,
            "differences": notes,
            "parity": probed,
            "texture": texture,
        }


def _figures(one: Series, ours: Series) -> dict[str, Any]:
    gain = ratio_interval(ours.images_per_s, one.images_per_s)
    return {
        "images_per_s": [round(rate, 1) for rate in one.images_per_s],
        "cpu_s_per_1000": [round(seconds, 3) for seconds in one.cpu_s],
        "ours_over_peer": round(gain.value, 3),
        "ours_over_peer_interval": {
            "low": round(gain.low, 3),
            "high": round(gain.high, 3),
            "confidence": round(gain.confidence, 4),
        },
    }
