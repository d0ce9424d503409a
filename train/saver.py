"""Saving without blocking the step: a snapshot in host memory, and a thread that writes it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from shard.errors import FeedlineError
from train import checkpoint
from train.checkpoint import SaveConfig
from train.run_folder import RunFolder


class Snapshot:
    """Copies nested tensors into host memory, which it uses again; on a GPU the copies are only queued.

    A later update of the weights comes after the copies in the device's queue, so the step need not wait.

    Args:
        device: where the tensors are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._pool: list[torch.Tensor] = []
        self._done: torch.cuda.Event | None = None

    def take(self, content: Any) -> Any:
        """Return `content` with every tensor copied. What the last call gave is overwritten."""
        pool, self._pool = iter(self._pool), []
        copied = self._copy(content, pool)
        if self._cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()
        return copied

    def wait(self) -> None:
        """Wait until the copies have been made; from any thread."""
        if self._done is not None:
            self._done.synchronize()

    def _copy(self, value: Any, pool: Iterator[torch.Tensor]) -> Any:
        if isinstance(value, torch.Tensor):
            buffer = next(pool, None)
            if buffer is None or not _alike(buffer, value):
                buffer = torch.empty_like(value, device="cpu", pin_memory=self._cuda, requires_grad=False)
            self._pool.append(buffer)
            return buffer.copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            return {k: self._copy(v, pool) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._copy(v, pool) for v in value]
        return value


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()


class Saver:
    """Writes checkpoints of one run in the background, at most one at a time, and removes old ones.

    Args:
        folder: the run folder.
        config: how many to keep.
        device: where the tensors are computed.
        last_step: step of the checkpoint `last` that is there already; None without.
    """

    def __init__(
        self, folder: RunFolder, config: SaveConfig, device: torch.device, last_step: int | None = None
    ) -> None:
        self._folder, self._config, self._last_step = folder, config, last_step
        self._snapshot = Snapshot(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedline-save")
        self._writing: Future[None] | None = None

    def submit(self, content: dict[str, Any], *, best: bool, before: Callable[[], None]) -> None:
        """Save `content` as `last`, and as `best` too if so. Waits only for an earlier one's end.

        Args:
            content: what `checkpoint.save` takes; may be changed as soon as this returns.
            best: whether it is the best so far.
            before: what must be safe on disk before the checkpoint is; called in the thread.

        Raises:
            FeedlineError: the earlier checkpoint could not be written.
        """
        self.wait()
        copied = self._snapshot.take(content)
        self._writing = self._thread.submit(self._write, copied, best, before)

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            FeedlineError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Finish writing and end the thread; an error is shown, since another one may be on its way."""
        try:
            self.wait()
        except FeedlineError as error:
            print(f"error: {error}", file=sys.stderr)
        finally:
            self._thread.shutdown()

    def _write(self, content: dict[str, Any], best: bool, before: Callable[[], None]) -> None:
        before()
        self._snapshot.wait()
        folder, step = self._folder, int(content["step"])
        if best:
            # Before `last`, which claims that `best` exists.
            checkpoint.save(folder.best, content)
        checkpoint.save(folder.last, content, keep_as=self._place_of_last(step))
        self._last_step = step
        for path in folder.earlier()[self._config.keep_last - 1 :]:
            path.unlink(missing_ok=True)

    def _place_of_last(self, step: int) -> Path | None:
        """Where the checkpoint `last` goes that is there now; None: it is overwritten."""
        before = self._last_step
        if self._config.keep_last == 1 or before is None or before == step:
            return None
        return self._folder.at_step(before)
