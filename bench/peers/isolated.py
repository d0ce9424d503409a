"""A peer in a process of its own: its threads, workers, caches and crashes are its own too.

Libraries in one process share thread pools, memory allocators and OpenMP settings, and a fork for a worker process
after another library has started threads may hang. What is measured here is one round trip over a pipe per batch (some
50 µs); the batch itself stays where it was made. Ours is measured in the same way.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.measure import children
from bench.peers import Entry, entry
from bench.peers.base import Job, Peer
from bench.peers.probe import BATCH, examine, texture
from shard.errors import FeedlineError

_PATIENCE_S = 300.0  # a reply that takes longer (FFCV compiles for half a minute) never comes
_END_S = 20.0


class Isolated:
    """See `bench.measure.Stage`.

    Args:
        name: in `bench.peers.PEERS`.
        job: what to do; its scratch folder is replaced by a temporary one.

    Raises:
        FeedlineError: the peer cannot be made or fails later, with its own last words.
    """

    def __init__(self, name: str, job: Job) -> None:
        found: Entry = entry(name)
        if found.missing:
            raise FeedlineError(f"peer {name} needs {found.missing[0]}, which is not installed")
        self.name, self.title, self.lead_in = name, found.title, 1
        self.output = self.note = ""
        self._job = job
        self._folder = tempfile.TemporaryDirectory(prefix=f"feedline-{name}-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name, "log.txt")
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, name, self._log), daemon=False)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def make(self) -> None:
        """Make the peer, converting the dataset where it needs that."""
        self.lead_in, self.output, self.note = self._ask("make", self._within(self._job, "data"))

    def examine(self, probes: Path) -> dict[str, Any]:
        """See `probe.examine`; before `make`."""
        job = replace(self._job, data=probes, split="train", batch_size=BATCH, augment=None)
        found: dict[str, Any] = self._ask("examine", self._within(job, "probes"))
        return found

    def texture(self, images: int) -> dict[str, float]:
        """See `probe.texture`."""
        found: dict[str, float] = self._ask("texture", images)
        return found

    def step(self) -> tuple[int, int]:
        """See `Stage.step`."""
        count: tuple[int, int] = self._ask("step")
        return count

    def synchronize(self) -> None:
        """See `Stage.synchronize`."""
        self._ask("synchronize")

    def close(self) -> None:
        """See `Stage.close`; ends the process, and what it may have left behind."""
        started = children(str(self._process.pid)) if self._process.is_alive() else []
        self._pipe.close()
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            _kill(started)
        self._process.close()
        self._folder.cleanup()

    def _within(self, job: Job, name: str) -> Job:
        scratch = Path(self._folder.name, name)
        scratch.mkdir()
        return replace(job, scratch=scratch)

    def _ask(self, what: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((what, arguments))
            if not self._pipe.poll(_PATIENCE_S):
                raise FeedlineError(f"peer {self.name} did not answer ({what}) for {_PATIENCE_S:.0f} s")
            ok, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise FeedlineError(f"peer {self.name} ended during {what}: {self._last_words()}") from error
        if not ok:
            raise FeedlineError(f"peer {self.name} failed during {what}: {answer}")
        return answer

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"


class _Server:
    """The other end: makes the peer and does as it is told."""

    def __init__(self, name: str) -> None:
        self._entry = entry(name)
        self.peer: Peer | None = None

    def make(self, job: Job) -> tuple[int, str, str]:
        self.peer = self._entry.make(job)
        return self.peer.lead_in, self.peer.output, self.peer.note

    def examine(self, job: Job) -> dict[str, Any]:
        peer = self._entry.make(job)
        try:
            return examine(peer)
        finally:
            peer.close()

    def texture(self, images: int) -> dict[str, float]:
        return texture(self._made(), images)

    def step(self) -> tuple[int, int]:
        return self._made().step()

    def synchronize(self) -> None:
        self._made().synchronize()

    def _made(self) -> Peer:
        assert self.peer is not None, "make comes first"
        return self.peer


def _serve(pipe: Connection, name: str, log: Path) -> None:
    # A spawned process spawns in its turn; the peer's workers shall start as they do for its users.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    # Ctrl-C reaches the whole group; the parent then closes the pipe, which ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    server = _Server(name)
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send((True, getattr(server, what)(*arguments)))
        except Exception as error:  # noqa: BLE001  whatever a library raises is the answer
            traceback.print_exc(file=sys.stderr)
            lines = str(error).strip().splitlines()
            pipe.send((False, f"{type(error).__name__}: {lines[0] if lines else ''}"))
    if server.peer is not None:
        server.peer.close()


def _kill(pids: list[str]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # ended by itself
            os.kill(int(pid), signal.SIGKILL)
