"""`python -m bench peers`: check that everybody does the same work, measure interleaved, and make a record."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.environment import environment
from bench.measure import Series, measure, ratio
from bench.peers import OURS, PEERS, entry
from bench.peers.augment import operations_per_image, resolve
from bench.peers.base import Job
from bench.peers.isolated import Isolated
from bench.peers.probe import antialiased, differences, make_probes
from loader import RandomResizedCrop
from shard.dataset import Dataset
from shard.errors import FeedlineError

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
    """Check and measure; what is not installed or fails in its check is left out and listed.

    Returns:
        The record, JSON-able: see docs/benchmarks.md.

    Raises:
        FeedlineError: an unknown peer or policy, no such dataset, a dataset smaller than a batch; ours does not work,
            or a peer fails while it is measured.
    """
    for name in contest.only:
        entry(name)
    augment = resolve(contest.augment) if contest.augment is not None else None
    samples = len(Dataset.open(contest.data).split(contest.split))
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
        field = _Field(job, make_probes(scratch, contest.size), stack, say)
        for name in dict.fromkeys((OURS, *contest.only)):
            field.admit(name)
        series = measure(field.stages, contest.repeats, contest.seconds, say)
    ours = series[0]
    return {
        "benchmark": "peers",
        "environment": environment(device),
        "settings": {
            "dataset": str(contest.data), "split": contest.split, "samples": samples, "size": contest.size,
            "batch_size": contest.batch_size, "threads": contest.threads, "device": str(device), "augment": augment,
            "repeats": contest.repeats, "seconds": contest.seconds, "page_cache": "hot",
        },
        "peers": [
            {**about, **_figures(one, ours)} for about, one in zip(field.admitted, series, strict=True)
        ],
        "left_out": field.left_out,
    }  # fmt: skip


class _Field:
    """The peers that take part, ours first."""

    def __init__(self, job: Job, probes: Path, stack: ExitStack, say: Callable[[str], None]) -> None:
        self._job, self._probes, self._stack, self._say = job, probes, stack, say
        self.stages: list[Isolated] = []
        self.admitted: list[dict[str, Any]] = []
        self.left_out: list[dict[str, str]] = []

    def admit(self, name: str) -> None:
        """Check a peer and let it take part, or say why not."""
        found = entry(name)
        why = self._why_not(name)
        if why is None:
            self._say(f"checking: {found.title}")
            with ExitStack() as attempt:
                stage = Isolated(name, self._job)
                attempt.callback(stage.close)
                try:
                    about = self._check(name, stage)
                except FeedlineError as error:
                    if name == OURS:
                        raise
                    why = str(error)
                else:
                    self.stages.append(stage)
                    self.admitted.append(about)
                    self._stack.push(attempt.pop_all())
        if why is not None:
            self._say(f"left out: {found.title}: {why}")
            self.left_out.append({"name": name, "title": found.title, "why": why})

    def _why_not(self, name: str) -> str | None:
        found, augment = entry(name), self._job.augment
        if name == OURS:
            return None
        if found.missing:
            return f"not installed ({found.missing[0]})"
        if augment is not None and augment.split("-")[0] not in found.policies:
            return f"has no {augment.split('-')[0]!r} augmentation of its own"
        return None

    def _check(self, name: str, stage: Isolated) -> dict[str, Any]:
        probed = stage.examine(self._probes)
        stage.make()
        texture = stage.texture(_TEXTURE_IMAGES)
        notes = differences(probed)
        ours = self.admitted[0]["texture"] if self.admitted else texture
        operations = operations_per_image(self._job.augment, entry(name).operations)
        if abs(texture["mean"] - ours["mean"]) > _LEVELS:
            notes.append(f"mean grey level {texture['mean']:.0f}, ours {ours['mean']:.0f}")
        if not _DETAIL[0] <= texture["detail"] / ours["detail"] <= _DETAIL[1]:
            notes.append(f"detail {texture['detail'] / ours['detail']:.2f} × ours")
        if operations is not None and self.admitted:
            own = self.admitted[0]["operations_per_image"]
            if abs(operations - own) > 0.02:
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
    return {
        "images_per_s": [round(rate, 1) for rate in one.images_per_s],
        "cpu_s_per_1000": [round(seconds, 3) for seconds in one.cpu_s],
        "ours_over_peer": round(ratio(ours, one), 3),
    }
