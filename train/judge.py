"""The run's own evaluations: of its model and of the average of the weights, on all ranks."""

from __future__ import annotations

from loader import Loader
from train.distributed import World
from train.evaluate import AnyResult, EvalConfig, Predict, augmented, evaluate
from train.step import TrainStep
from train.stop import StopSignal


class Judge:
    """Evaluates what is trained.

    Args:
        step: of the model.
        loader: this rank's share of the split.
        config: how.
        world: the ranks that share the split.
        stop: where signals come in.
    """

    def __init__(
        self, step: TrainStep, loader: Loader, config: EvalConfig, world: World, stop: StopSignal
    ) -> None:
        self._step, self._loader, self._config, self._world, self._stop = step, loader, config, world, stop

    def plain(self) -> AnyResult | None:
        """Evaluate rank 0's model on all ranks; None if a signal came meanwhile."""
        self._world.broadcast_(self._step.net.buffers())  # running statistics differ between ranks until now
        self._step.net.eval()
        return self._evaluate(self._step.predict)

    def averaged(self) -> AnyResult | None:
        """Evaluate rank 0's averaged weights on all ranks; None if there are none, or a signal came meanwhile."""
        if self._step.ema is None:
            return None
        self._world.broadcast_(self._step.ema.net.buffers())
        return self._evaluate(self._step.predict_averaged)

    def _evaluate(self, predict: Predict) -> AnyResult | None:
        predict = augmented(predict, self._config)
        self._stop.pace()
        return evaluate(predict, self._loader, self._world, lambda _: self._stop.due())
