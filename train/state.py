"""What a checkpoint holds, and how a run takes it up again."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from loader import Loader
from shard.dataset import Dataset
from train.checkpoint import set_rng_state
from train.config import Config, from_dict, to_dict
from train.distributed import World
from train.evaluate import AnyResult, metric_of, rank
from train.step import TrainStep
from train.stop import Plateau, StopConfig
from train.synthetic import SyntheticLoader


@dataclass(slots=True, kw_only=True)
class RunState:
    """How far a run has come.

    Attributes:
        step: optimiser steps done.
        best_top1: best evaluation so far, percent; -1 before the first, and always on a multi-label dataset.
        best_map: the same on a multi-label dataset.
        best_loss: its loss; -inf before the first, and of a checkpoint that does not tell.
        best_epoch: its epoch, from 1.
        last_eval: fields of the newest result of `train.evaluate.evaluate`.
        losses: losses of the steps since the last line of metrics.
        elapsed_s: seconds spent up to the checkpoint.
        plateau: fields of `train.stop.Plateau`.
        ended: why the run ended before its last epoch; "" if it did not.
        own_head: whether pretrained weights brought the classifier with them.
        before: what `train.before.measure` found; {} without pretrained weights.
    """

    step: int = 0
    best_top1: float = -1.0
    best_map: float = -1.0
    best_loss: float = -math.inf
    best_epoch: int = 0
    last_eval: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0
    plateau: dict[str, Any] = field(default_factory=dict)
    ended: str = ""
    own_head: bool = False
    before: dict[str, Any] = field(default_factory=dict)

    def judge(self, epoch: int, result: AnyResult, averaged: AnyResult | None, stop: StopConfig) -> bool:
        """Take an evaluation in; sets `ended` where the run should end.

        Who keeps an average wants that model: it alone decides what is best and when to stop. Of equal ones the best is
        that with the lower loss; to stop goes by its metric alone.

        Args:
            epoch: that was evaluated, from 1.
            result: of the weights.
            averaged: of their average, if there is one.
            stop: when a run ends early.

        Returns:
            whether it is the best so far.
        """
        self.last_eval = result.as_dict() | (averaged.as_dict("ema_") if averaged else {})
        judged = averaged or result
        best = f"best_{judged.metric}"
        improved: bool = rank(judged.score, judged.loss) > rank(getattr(self, best), self.best_loss)
        if improved:
            setattr(self, best, judged.score)
            self.best_loss = judged.loss
            self.best_epoch = epoch
        plateau = Plateau(**self.plateau)
        self.ended = plateau.observe(stop, judged.as_dict())
        self.plateau = asdict(plateau)
        return improved

    def result(self) -> dict[str, Any]:
        """What a summary tells of it."""
        name = f"best_{metric_of(self.last_eval)}"
        best = {name: getattr(self, name), "best_epoch": self.best_epoch}
        before = {"before": self.before} if self.before else {}
        return {**before, **self.last_eval, **best, "ended": self.ended, "steps": self.step}


def rejudge(content: dict[str, Any], stop: StopConfig) -> None:
    """Judge the end of a checkpoint's run anew where other settings ended it: they may change when a run goes on.

    What a run that has not ended makes of its new settings is seen at its next evaluation. Changes `content`.

    Args:
        content: of the checkpoint.
        stop: when the run ends early from now on.
    """
    saved = from_dict(StopConfig, content["config"]["stop"], "the checkpoint", "stop.")
    if saved == stop or not content["last_eval"]:
        return
    newest = _judged(content["last_eval"])[stop.stop_metric]
    plateau = Plateau(**content["plateau"])
    # Another metric's best says nothing; by a smaller min_change the newest may be an improvement.
    same = (saved.stop_metric, saved.sign) == (stop.stop_metric, stop.sign)
    if not same or plateau.improves(stop, newest):
        plateau = Plateau(best=newest)
        content["plateau"] = asdict(plateau)
    if content["ended"]:
        content["ended"] = plateau.verdict(stop, newest)


def _judged(last_eval: dict[str, Any]) -> dict[str, Any]:
    """Of `RunState.last_eval` the fields that `judge` went by."""
    averaged = {k.removeprefix("ema_"): v for k, v in last_eval.items() if k.startswith("ema_")}
    return averaged or last_eval


def is_finished(content: dict[str, Any], epochs: int) -> bool:
    """Whether the checkpoint is the end of its run of `epochs` epochs, begun ones included."""
    return bool(content["epoch"] == epochs or content["ended"])


def capture(
    state: RunState, step: TrainStep, loader: Loader | SyntheticLoader, config: Config, dataset: Dataset
) -> dict[str, Any]:
    """The part of a checkpoint that all ranks have alike; model keys are the bare timm model's."""
    return {
        **asdict(state),
        "epoch": loader.epoch,
        "loader": loader.state_dict(),
        "model": step.net.model.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "scaler": step.scaler.state_dict(),
        # The name under which timm looks for averaged weights.
        **({} if step.ema is None else {"model_ema": step.ema.state_dict()}),
        "config": to_dict(config),
        "classes": list(dataset.classes),
        "multi_label": dataset.multi_label,
        "fingerprint": dataset.fingerprint,
        "images": asdict(dataset.images),
    }


def restore(
    content: dict[str, Any], step: TrainStep, loader: Loader | SyntheticLoader, world: World
) -> RunState:
    """Put model, optimiser, scaler, loader and generators back as they were, and return the state.

    Raises:
        FeedlineError: the loader's position is one in other data.
    """
    step.net.model.load_state_dict(content["model"])
    step.optimizer.load_state_dict(content["optimizer"])
    step.scaler.load_state_dict(content["scaler"])
    if step.ema is not None:
        step.ema.load_state_dict(content["model_ema"])
    loader.load_state_dict(content["loader"])
    if world.rank < len(content["rng"]):  # of more ranks than before the new ones keep their seed
        set_rng_state(content["rng"][world.rank], world.device)
    # Checkpoints that were written before there was a field go on without it.
    return RunState(**{f.name: content[f.name] for f in fields(RunState) if f.name in content})
