"""The training loop: train → train_epoch → train_step → forward_backward_step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, NoReturn

import torch

from loader import Batch, Loader
from shard.dataset import Dataset
from train import before, summary
from train.build import length_of, make_step
from train.checkpoint import rng_state
from train.config import Config, flat
from train.config import save as save_config
from train.distributed import World
from train.evaluate import AnyResult
from train.inputs import eval_loader, first_images, train_loader
from train.judge import Judge
from train.logbook import Logbook
from train.mix import Mixing
from train.resolution import size_at, sizes
from train.run_folder import RunFolder
from train.saver import Saver
from train.schedule import lr_at
from train.state import RunState, capture, restore
from train.step import TrainStep
from train.stop import Stopped, StopSignal
from train.synthetic import SyntheticLoader
from train.telemetry import Gauges, LossWindow, Meter, NonFiniteError, StepRecord, open_metrics

WARMUP_STEPS = 5  # of each process, left out of images/s: compilation, first allocations, cold files


class Trainer:
    """Trains one run on this rank. A context manager: closing it stops the loaders.

    Args:
        config: what to train.
        dataset: on what.
        world: with whom.
        folder: where files go; must exist.
        content: checkpoint to go on from.
        keep_metrics: whether `content` belongs to the same folder, so that its metrics go on too.

    Raises:
        FeedlineError: model, batch size, split or checkpoint do not fit.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        world: World,
        folder: RunFolder,
        content: dict[str, Any] | None = None,
        *,
        keep_metrics: bool = True,
    ) -> None:
        self.config, self.dataset, self.world, self.folder = config, dataset, world, folder
        self.state = RunState()
        self._began = time.perf_counter()
        with ExitStack() as stack:
            self.length = length_of(config, dataset)
            grow = size_at(config.resolution, config.input.size, self.length)
            self.loader: Loader | SyntheticLoader = self._open_loader(grow)
            stack.enter_context(self.loader)
            held_out = stack.enter_context(eval_loader(config.input, dataset, self.loader.batch_size, world))
            self.step = self._make_step(len(sizes(grow, config.input.size, self.length)), content is not None)
            # A small dataset's curves need points, too, and each line has to stand for as many steps.
            self._short_epochs = min(self.length.steps_per_epoch, self.length.steps) < config.log_every
            self.mixing = Mixing(config.mix, config.seed, self.length)
            self.thaw_step = self.length.of(config.freeze.freeze_for, "freeze_for")
            self.state.own_head = self.step.net.own_head
            kept = 0
            if content is not None:
                self.state = restore(content, self.step, self.loader, world)
                kept = content["metrics_bytes"] if keep_metrics else 0
            self.metrics = stack.enter_context(
                open_metrics(folder.metrics, config.telemetry, flat(config), kept, self.state.step, world)
            )
            last_step = content["step"] if content is not None and keep_metrics else None
            self.saver = Saver(folder, config.save, world.device, last_step)
            stack.callback(self.saver.close)
            self.gauges = stack.enter_context(
                Gauges(config.telemetry, self.step, world, folder.root, WARMUP_STEPS)
            )
            self.stop = stack.enter_context(StopSignal(world))
            self.judge = Judge(self.step, held_out, config.evaluation, world, self.stop)
            self._stack = stack.pop_all()
        self.losses = LossWindow(config.log_every, world)
        self.meter = Meter(world.device, WARMUP_STEPS)
        self.side = config.input.size  # of the newest batch's images, pixels
        self.logbook = Logbook(
            config, self.length, self.metrics, self.meter, self.gauges, active=world.is_main
        )
        if world.is_main:
            save_config(config, folder.config)

    def _open_loader(self, grow: Callable[[int, int], int] | None) -> Loader | SyntheticLoader:
        given, world = self.config, self.world
        loader_of = SyntheticLoader if given.synthetic else train_loader
        return loader_of(given.input, self.dataset, given.seed, given.step.accumulate, world, grow)

    def _make_step(self, image_sizes: int, resumed: bool) -> TrainStep:
        config, dataset, world = self.config, self.dataset, self.world
        images = None if resumed else lambda: first_images(config.input, dataset, world.device)
        return make_step(
            config,
            len(dataset.classes),
            world,
            dataset=dataset,
            sizes=image_sizes,
            first_images=images,
            resumed=resumed,
        )

    def train(self) -> dict[str, Any]:
        """Train to the end, or from a checkpoint to the end, and return the summary.

        Raises:
            Stopped: a signal came; the checkpoint is written.
            NonFiniteError: loss or weights are not finite; no checkpoint is written.
        """
        self.measure_before()
        try:
            while self.loader.epoch < self.length.epochs and not self.state.ended:
                self.train_epoch()
                self.finish_epoch()
        except NonFiniteError as error:
            if self.world.is_main:
                self.folder.nonfinite.write_text(json.dumps(error.details) + "\n", encoding="utf-8")
            raise
        self.saver.wait()
        return self.summarize()

    def measure_before(self) -> None:
        """Measure once a run what its pretrained weights are worth as they are."""
        state, config = self.state, self.config
        if state.step or state.before or config.model.pretrained is None or config.synthetic:
            return
        self.stop.pace()
        own_head = state.own_head  # as it was in the process that loaded the pretrained weights
        found = before.measure(
            self.step, config, self.dataset, self.world, own_head, self.evaluate, self.stop.due
        )
        if self.stop.agreed:
            self.save()
            self.leave()
        if found:
            state.before = found
            self.logbook.before(found)

    def train_epoch(self) -> None:
        """Train the rest of the loader's epoch."""
        self.step.train()
        self.stop.pace()
        left = (self.loader.num_samples - self.loader.samples_consumed) // self.config.input.batch_size
        left = min(left, self.length.steps - self.state.step)  # the training may end within an epoch
        batches = iter(self.loader)
        self.meter.start()
        for remaining in reversed(range(left)):
            self.train_step(batches)
            self.after_step(epoch_ends=remaining == 0)

    def train_step(self, batches: Iterator[Batch]) -> None:
        """Do one optimiser step on one global batch. Waits for the loader, never for the device."""
        lr = self.lr(self.state.step)
        self.step.set_frozen(self.state.step < self.thaw_step)
        accumulate = self.config.step.accumulate
        began = self.loader.samples_consumed
        loss, ids, valid = torch.zeros((), device=self.world.device), [], 0
        for part in range(accumulate):
            batch = next(batches)
            self.meter.mark("data")
            ids.append(batch.ids)
            valid += batch.num_valid
            mix = self.mixing(self.loader.epoch, self.state.step, batch.ids, batch.images)
            loss += self.step.forward_backward(
                batch.images, batch.labels, batch.valid, last=part == accumulate - 1, mix=mix
            )
            self.meter.mark("forward_backward")
        self.side = batch.images.shape[1]
        self.state.step += 1
        weight = self.step.take_weight()
        share = valid / (self.loader.batch_size * accumulate) if weight is None else weight
        self.step.update(lr, self.state.step)
        self.losses.add(loss, StepRecord(self.state.step, lr, ids, self.loader.epoch, began, share))
        self.meter.mark("optimiser")
        self.meter.count()
        self.gauges.profiler.step()

    def lr(self, step: int) -> float:
        """Learning rate of step 0, 1, … of the run."""
        return lr_at(step, self.config.optim.lr, self.config.schedule, self.length)

    def after_step(self, *, epoch_ends: bool) -> None:
        """Log, save or stop where it is time to."""
        every, step = self.config.save.checkpoint_every, self.state.step
        self.world.note_step(step)
        self.saver.check()
        report = epoch_ends if self._short_epochs else step % self.config.log_every == 0
        save = every is not None and step % every == 0 and not epoch_ends  # the epoch's end saves anyway
        stop = self.stop.due()
        if not (report or save or stop):
            return
        self.look()
        if report:
            self.report()
        if save or stop:
            self.save()
        if stop:
            self.leave()
        self.meter.start()

    def leave(self) -> NoReturn:
        """Raise `Stopped` once the checkpoint is on disk: torchrun ends all ranks soon after the first has left."""
        self.saver.wait()
        self.world.gather(None)
        raise Stopped(self.stop.agreed)

    @contextmanager
    def aside(self, phase: str) -> Iterator[None]:
        """Measure work that is no training step: it has no part in rates and energy."""
        with self.meter.aside(phase), self.gauges.aside():
            yield

    def look(self) -> None:
        """Wait for the device, take the losses over, and stop the clock."""
        self.state.losses += self.losses.look()
        self.meter.stop()

    def finish_epoch(self) -> None:
        """Evaluate, log and save after the epoch's last step."""
        self.look()
        self.losses.check_weights(self.step.net.model)
        epoch = self.loader.epoch + 1
        if self.config.synthetic:
            self.loader.set_epoch(epoch)
            return  # there is nothing to evaluate, and nothing to save
        bad = self.world.gather(self.loader.bad_samples)
        if self.metrics.history is not None:
            self.metrics.history.bad(sample for rank in bad for sample in rank)
        began = time.perf_counter()
        with self.aside("evaluation"):
            result = self.evaluate()
        if result is None:
            self.save()  # as before the evaluation, which is repeated when the run goes on
            self.leave()
        with self.aside("evaluation"):
            averaged = self.judge.averaged()
        if self.stop.agreed:
            self.save()
            self.leave()
        self.loader.set_epoch(epoch)
        state = self.state
        improved = state.judge(epoch, result, averaged, self.config.stop)
        took_s, warning = time.perf_counter() - began, self.step.watch.warning()
        self.logbook.evaluation(state, epoch, result, averaged, took_s, best=improved, warning=warning)
        self.save(best=improved)

    def evaluate(self) -> AnyResult | None:
        """Evaluate rank 0's model on all ranks; None if a signal came meanwhile."""
        return self.judge.plain()

    def report(self) -> None:
        """Write a line of metrics and show the progress."""
        self.logbook.steps(self.state, self.loader.epoch + 1, self.side)

    def elapsed_s(self) -> float:
        """Seconds trained, by this process and those before it."""
        return self.state.elapsed_s + time.perf_counter() - self._began

    def save(self, *, best: bool = False) -> None:
        """Save the checkpoint `last`, and `best` too if so, in the background. Collective; rank 0 writes.

        Raises:
            NonFiniteError: a weight is not finite.
            FeedlineError: the checkpoint before this one could not be written.
        """
        if self.config.synthetic:
            return
        with self.aside("checkpoint"):
            self._save(best=best)

    def _save(self, *, best: bool) -> None:
        self.losses.check_weights(self.step.net.model)
        rng = self.world.gather(rng_state(self.world.device))
        if not self.world.is_main:
            return
        self.state.elapsed_s = self.elapsed_s()
        self._began = time.perf_counter()
        content = {
            **capture(self.state, self.step, self.loader, self.config, self.dataset),
            "metrics_bytes": self.metrics.size(),
            "rng": rng,
        }
        self.saver.submit(content, best=best, before=self.metrics.sync)

    def summarize(self) -> dict[str, Any]:
        """Result of the finished run; rank 0 writes it to summary.json."""
        found = summary.collect(
            self.config,
            self.world,
            self.state,
            self.step.watch,
            self.meter,
            self.loader.epoch,
            self.elapsed_s(),
        )
        if self.world.is_main:
            summary.write(found, self.folder.summary)
        return found

    def __enter__(self) -> Trainer:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close loaders and metrics, give the signals back."""
        self._stack.__exit__(kind, error, trace)
