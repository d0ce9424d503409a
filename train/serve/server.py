"""The process around the application: its socket, connections that say nothing, and signals."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from shard.errors import FeedlineError

_ACCEPTED = 32  # connections that are taken at a time, between looks at how many there are
_QUEUE = 1024  # of connections that the system holds until they are taken
_SPARE = 64 + 4 * _ACCEPTED  # file descriptors: of files, and of connections taken and not yet looked at
_MOST = 4096  # connections, however many descriptors there are
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 47\r\nretry-after: 1\r\n"
    b"connection: close\r\n\r\n"
    b'{"detail":"too many connections; try it later"}'
)


def bind(host: str, port: int) -> socket.socket:
    """Take the address; nobody is let in before the server runs.

    Args:
        host: name or address.
        port: 0 for any that is free.

    Raises:
        FeedlineError: it is taken, not this machine's, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise FeedlineError(f"--host is {host!r}, which is no address: {error}") from error
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise FeedlineError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; give another --port or --host"
        ) from error
    return found


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def most_connections() -> int:
    """How many connections this process has file descriptors for (`ulimit -n`), less those that it needs itself.

    asyncio, out of them, would write megabytes of tracebacks a second.
    """
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return _MOST
    return max(1, min(_MOST, descriptors - _SPARE))


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, where a connection that has no request under way ends after `timeout_keep_alive` s.

    uvicorn itself waits without end for the head of a request: a client that sends a byte now and then, or goes on
    with a body that was refused, would keep its connection. So would one that does not read its answer. And it takes
    connections until there are no file descriptors.
    """

    most = most_connections()
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(_FULL)
            transport.close()
            return
        transport.set_write_buffer_limits(high=0)  # to hear of any byte that the client does not take
        self._watch()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.timeout_keep_alive, self._end)

    def resume_writing(self) -> None:
        """Stop waiting for it."""
        super().resume_writing()
        self._stop_unread()

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def data_received(self, data: bytes) -> None:
        """Go on waiting where this does not complete a request's head."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        self._stop()
        self._stop_unread()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(self.timeout_keep_alive, self._end)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self.transport.abort()


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let clients wait in the system's queue, of which asyncio takes a few at a time."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_QUEUE)


def make_server(app: FastAPI, *, head_timeout_s: float, stop_timeout_s: float) -> uvicorn.Server:
    """Make a server that is not running yet.

    Args:
        app: what answers.
        head_timeout_s: until a request's head is there, and for which a connection may be idle.
        stop_timeout_s: that requests have to end when the server stops.
    """
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="error",  # each line of nonsense that a client sends would be a warning
        timeout_keep_alive=head_timeout_s,  # type: ignore[arg-type]  # call_later takes fractions
        timeout_graceful_shutdown=round(stop_timeout_s),
        server_header=False,
        backlog=_ACCEPTED,
    )
    return _Server(config)


def run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, and let requests that are under way end; a second SIGINT does not wait."""

    def stop(number: int, frame: object) -> None:
        server.should_exit = True

    # uvicorn handles both while it runs. Having stopped it raises the signal again, for whoever handled it before.
    before: dict[int, Any] = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
