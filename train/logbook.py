"""What a run tells while it trains: lines of metrics, and its progress on the terminal."""

from __future__ import annotations

from typing import Any

from train.before import before_line
from train.config import Config
from train.evaluate import AnyResult, eval_line
from train.metrics import Metrics
from train.progress import Progress, rate_text
from train.schedule import Length, lr_at
from train.state import RunState
from train.telemetry import Gauges, Meter


class Logbook:
    """Writes it down.

    Args:
        config: of the run.
        length: of the run.
        metrics: where lines go.
        meter: of time.
        gauges: of the machine.
        active: whether to show the progress.
    """

    def __init__(
        self,
        config: Config,
        length: Length,
        metrics: Metrics,
        meter: Meter,
        gauges: Gauges,
        *,
        active: bool,
    ) -> None:
        self._config, self._length, self._metrics = config, length, metrics
        self._meter, self._gauges = meter, gauges
        self._progress = Progress(active=active)

    def before(self, found: dict[str, Any]) -> None:
        """Tell what `train.before.measure` found."""
        self._progress.line(before_line(found))
        self._metrics.write(kind="before", step=0, **found)

    def steps(self, state: RunState, epoch: int, side: int) -> None:
        """Tell of the steps since the last line, and forget their losses.

        Args:
            state: of the run, with the losses.
            epoch: from 1.
            side: of the newest batch's images, pixels.
        """
        rate, batch_size = self._meter.report(), self._config.input.batch_size
        loss = sum(state.losses) / len(state.losses)
        state.losses = []
        lr = lr_at(state.step - 1, self._config.optim.lr, self._config.schedule, self._length)
        speed, share = rate.images_per_s(batch_size), rate.wait_share
        self._metrics.write(
            kind="train",
            step=state.step,
            epoch=epoch,
            loss=loss,
            lr=lr,
            images_per_s=speed and round(speed, 1),
            data_wait_share=share and round(share, 4),
            **self._gauges.read(rate, batch_size, side),
        )
        total = self._meter.total
        left_s = (self._length.steps - state.step) * total.seconds / total.steps if total.steps else None
        self._progress.update(
            f"epoch {epoch}/{self._length.epochs}  step {state.step}/{self._length.steps}  "
            f"loss {loss:.4f}  lr {lr:.4g}  {rate_text(speed, share, left_s)}"
        )

    def evaluation(
        self,
        state: RunState,
        epoch: int,
        result: AnyResult,
        averaged: AnyResult | None,
        took_s: float,
        *,
        best: bool,
        warning: str,
    ) -> None:
        """Tell of an evaluation, after `state` has judged it.

        Args:
            state: of the run.
            epoch: that was evaluated, from 1.
            result: of the weights.
            averaged: of their average, if there is one.
            took_s: of both, seconds.
            best: whether it is the best so far.
            warning: about compilation; "" where there is none.
        """
        self._metrics.write(kind="eval", epoch=epoch, step=state.step, **state.last_eval)
        of = f"{epoch}/{self._length.epochs}"
        self._progress.line(eval_line(of, result, took_s, averaged, best=best))
        if warning:
            self._progress.line(warning)
        if state.ended:
            self._progress.line(f"ending here: {state.ended}")
