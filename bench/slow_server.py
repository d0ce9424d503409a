"""An HTTP server like a distant object store: latency, a limited rate, failures on demand. On loopback, for tests."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

_PIECE = 8 << 10


class SlowServer:
    """Serves a folder, with ranges. A context manager.

    Args:
        folder: what to serve.
        latency_s: before each answer.
        bytes_per_s: of all transfers together; None: as fast as it goes.

    Attributes:
        url: of the folder.
        down: while true, connections are cut, in the middle of a transfer too.
        corrupt: names of files that come with one byte changed, and how often yet.
        requests: number of requests by name.
        sent: bytes by name.
    """

    def __init__(self, folder: Path, *, latency_s: float = 0.0, bytes_per_s: float | None = None) -> None:
        self.folder, self.latency_s, self.bytes_per_s = folder, latency_s, bytes_per_s
        self.down = False
        self.corrupt: dict[str, int] = {}
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._free_at = 0.0  # when the link has sent everything that was given to it
        owner = self

        class Handler(_Handler):
            server_state = owner

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def pace(self, size_bytes: int) -> None:
        """Wait until the link has sent so many bytes more."""
        if self.bytes_per_s is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size_bytes / self.bytes_per_s
            delay_s = self._free_at - now
        time.sleep(delay_s)

    def content(self, name: str) -> bytes | None:
        """Bytes of a file, damaged if that is due; None if there is none."""
        path = self.folder / name
        if not path.is_file():
            return None
        content = path.read_bytes()
        with self._lock:
            self.requests[name] += 1
            if self.corrupt.get(name, 0) > 0:
                self.corrupt[name] -= 1
                return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
        return content

    def count(self, name: str, size_bytes: int) -> None:
        """Note bytes that were sent."""
        with self._lock:
            self.sent[name] += size_bytes

    def __enter__(self) -> SlowServer:
        """Start."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_state: SlowServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        state, name = self.server_state, self.path.split("?")[0].strip("/")
        time.sleep(state.latency_s)
        if state.down:
            self.close_connection = True
            return
        content = state.content(name) if body else self._peek(name)
        if content is None:
            self._head(404, 0)
            return
        start, end = 0, len(content)
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), min(int(found[2] or end - 1) + 1, len(content))
            if start >= len(content):
                self._head(416, 0)
                return
            self._head(206, end - start, f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self._head(200, len(content))
        if body:
            self._send(name, memoryview(content)[start:end])

    def _peek(self, name: str) -> bytes | None:
        path = self.server_state.folder / name
        return path.read_bytes() if path.is_file() else None

    def _head(self, status: int, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def _send(self, name: str, content: memoryview) -> None:
        for first in range(0, len(content), _PIECE):
            if self.server_state.down:
                self.close_connection = True
                return
            piece = content[first : first + _PIECE]
            self.server_state.pace(len(piece))
            try:
                self.wfile.write(piece)
            except (BrokenPipeError, ConnectionResetError):  # the client has had enough
                self.close_connection = True
                return
            self.server_state.count(name, len(piece))

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""
