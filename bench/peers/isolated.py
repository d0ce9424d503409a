"""A peer in a process of its own: its threads, workers, caches and crashes are its own too.

Libraries in one process share thread pools, memory allocators and OpenMP settings, and a fork for a worker process
after another library has started threads may hang. What is measured here is one round trip over a pipe per batch (some
50 µs); the batch itself stays where it was made. Ours is measured in the same way.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
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
        self._pipe, theirs = Pipe()
        # An ordinary program, so that the peer's own workers start as they do for its users.
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), name, self._folder.name]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()]
            )
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
        started = children(str(self._process.pid))
        self._pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            _kill(started)
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


def _serve(pipe: Connection, name: str, folder: Path) -> None:
    # Ctrl-C reaches the whole group; the parent then closes the pipe, which ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    server = _Server(name)
    try:
        _answer(pipe, server)
    finally:
        if server.peer is not None:
            server.peer.close()
        # The parent does this too, but it may have been killed.
        shutil.rmtree(folder, ignore_errors=True)


def _answer(pipe: Connection, server: _Server) -> None:
    """Do as the other end says until it closes the pipe."""
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        try:
            reply = (True, getattr(server, what)(*arguments))
        except Exception as error:  # noqa: BLE001  whatever a library raises is the answer
            traceback.print_exc(file=sys.stderr)
            lines = str(error).strip().splitlines()
            reply = (False, f"{type(error).__name__}: {lines[0] if lines else ''}")
        try:
            pipe.send(reply)
        except BrokenPipeError:
            return


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _kill(pids: list[str]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # ended by itself
            os.kill(int(pid), signal.SIGKILL)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), sys.argv[2], Path(sys.argv[3]))
