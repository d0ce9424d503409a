"""What a scaling measurement is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from bench.accelerator import Accelerator
from bench.scaling.network import Network
from train.config import Config

OVER = ("threads", "processes", "gpus", "nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        config: of the training, or of the loader alone where threads are scaled.
        over: one of `OVER`.
        counts: to measure, with 1.
        strong: the global batch stays the same; otherwise each rank's.
        to: greatest count to extrapolate and simulate.
        like: name and figures of an accelerator to simulate besides; None: none.
        network: assumed for it.
        repeats: of every count, interleaved.
        seconds: of each.
    """

    config: Config
    over: str
    counts: tuple[int, ...]
    strong: bool
    to: int
    like: tuple[str, Accelerator] | None
    network: Network
    repeats: int
    seconds: float
