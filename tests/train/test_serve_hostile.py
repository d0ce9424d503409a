"""`python -m train serve` and requests that mean harm, or are mistakes."""

from __future__ import annotations

import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.serving import FORM, Served, encoded, form, hold, served, until, waiting
from train.serve.app import Limits
from train.serve.refused import RefusedError
from train.serve.server import Protocol
from train.serve.upload import Budget, Upload
from train.trained import Trained


@pytest.fixture(scope="module")
def server(lively: Trained) -> Iterator[Served]:
    """A server for tests that leave it as it was."""
    with served(lively, Limits(max_body_bytes=200_000, max_pixels=1_000_000)) as found:
        yield found


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it has millions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


HOSTILE: dict[str, tuple[int, str, dict[str, Any]]] = {
    "empty": (422, "empty", {"body": b""}),
    "empty field": (422, "empty", {"body": form(b""), "Content_Type": FORM}),
    "text": (415, "not an image", {"body": b"I am no image"}),
    "a shell script by its bytes": (415, "not an image", {"body": b"\x7fELF" + bytes(100)}),
    "json": (415, "Content-Type is 'application/json'", {"body": b"{}", "Content_Type": "application/json"}),
    "compressed": (415, "Content-Encoding 'gzip'", {"body": b"x", "Content_Encoding": "gzip"}),
    "cut jpeg": (422, "damaged image: truncated", {"body": encoded("JPEG")[:2000]}),
    "cut png": (422, "damaged image: truncated", {"body": encoded("PNG")[:2000]}),
    "two bytes of jpeg": (415, "not an image", {"body": b"\xff\xd8"}),
    "bomb": (413, "more than 178956970 pixels", {"body": bomb(50_000)}),
    "bomb in a form": (
        413,
        "13000 x 13000 pixels, more than 1,000,000",
        {"body": form(bomb(13_000)), "Content_Type": FORM},
    ),
    "scans": (
        422,
        "scans, more than 200",
        {"body": encoded("JPEG")[:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 900},
    ),
    "no boundary": (400, "without a boundary", {"body": form(b"x"), "Content_Type": "multipart/form-data"}),
    "long boundary": (
        400,
        "broken",
        {"body": form(b"x"), "Content_Type": "multipart/form-data; boundary=" + "X" * 9999},
    ),
    "HEIC": (415, "HEIC, which is not read: save it as JPEG", {"body": b"\0\0\0\x18ftypheic" + bytes(99)}),
    "other boundary": (400, "broken", {"body": form(b"x", boundary="YY"), "Content_Type": FORM}),
    "cut form": (400, "cut off", {"body": form(b"x" * 99)[:-30], "Content_Type": FORM}),
    "other field": (400, "a field 'image'", {"body": form(b"x", "image"), "Content_Type": FORM}),
    "two fields": (
        400,
        "several parts",
        {"body": form(b"x")[:-6] + b"\r\n" + form(b"x"), "Content_Type": FORM},
    ),
    "endless header": (400, "broken", {"body": b"--XX\r\n" + b"a" * 99_999, "Content_Type": FORM}),
    "long": (413, "larger than 200,000 bytes", {"body": bytes(200_001)}),
    "long in chunks": (413, "larger than 200,000 bytes", {"body": [bytes(50_000)] * 40}),
    "top=0": (422, "top is '0'", {"body": b"x", "path": "/predict?top=0"}),
    "top=x": (422, "top is 'x'", {"body": b"x", "path": "/predict?top=x"}),
    "topk": (422, "unknown parameter 'topk'", {"body": b"x", "path": "/predict?topk=3"}),
    "get": (405, "there is POST /predict", {"method": "GET"}),
    "elsewhere": (404, "there is POST /predict", {"path": "/predictions"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_refused(server: Served, name: str) -> None:
    status, reason, request = HOSTILE[name]
    reply = server.send(**request)
    assert reply.status == status, reply
    assert reason in reply.said["detail"]
    assert "\n" not in reply.said["detail"]


class Watched(Budget):
    """Remembers how little was left."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.least = size_bytes

    def take(self, size_bytes: int) -> None:
        """Take some."""
        super().take(size_bytes)
        self.least = min(self.least, self.left)


def test_a_body_that_is_refused_is_not_held(lively: Trained, photos: list[bytes]) -> None:
    """Of a body without end no more is kept than the limit, and what is counted for its connection."""
    limits = Limits(max_body_bytes=300_000)
    with served(lively, limits) as server:
        budget = server.service.budget = Watched(limits.budget_bytes)
        assert server.send([bytes(65_536)] * 100).status == 413
        assert 65_536 <= limits.budget_bytes - budget.least <= 300_000 + 65_536
        assert server.send(photos[0]).status == 200


def test_all_bodies_together_are_limited(lively: Trained) -> None:
    budget = Budget(200_000)
    first, second = Upload(budget, None, 5), Upload(budget, None, 5)
    first.take(150_000)
    with pytest.raises(RefusedError, match="too many uploads at a time") as refused:
        second.take(60_000)
    assert refused.value.status == 503
    first.close()
    first.close()
    second.take(60_000)
    assert budget.left == 140_000


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300).filter(lambda content: b"--XX" not in content))
def test_a_form_gives_back_what_was_put_in(content: bytes) -> None:
    assert Upload(Budget(0), b"XX", 5, form(content)).image() == content


def request_of(image: bytes) -> bytes:
    return b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(image) + image


def test_clients_that_leave(lively: Trained, photos: list[bytes]) -> None:
    with served(lively) as server:
        first = hold(server, photos[0])
        with socket.create_connection(("127.0.0.1", server.port)) as leaving:
            leaving.sendall(request_of(photos[1]))
            waiting(server, 2)
        with socket.create_connection(("127.0.0.1", server.port)) as leaving:
            leaving.sendall(request_of(photos[1])[:-10])
        gone = 'feedline_requests_total{path="/predict",status="499"}'
        until(lambda: server.metric(gone) == 2)
        server.gate.open.set()
        assert first.result().status == 200
        waiting(server, 0)
        assert server.gate.batches == [1]


def test_slow_clients(lively: Trained, photos: list[bytes]) -> None:
    """Those that do not send a head, a body, or the rest of a body that is refused; and one that idles."""
    whole = request_of(photos[0])
    too_long = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n"
    parts = {b"": b"", whole[:20]: b"", whole[:-9]: b" 408 ", too_long: b" 413 ", whole: b" 200 "}
    with served(lively, Limits(upload_timeout_s=1)) as server:
        connections = []
        for part in parts:
            connections.append(socket.create_connection(("127.0.0.1", server.port), 20))
            connections[-1].sendall(part)  # at once: the time for a head has begun
        for connection, expected in zip(connections, parts.values(), strict=True):
            with connection:
                got = b""
                while more := connection.recv(10_000):  # until the server closes
                    got += more
                assert expected in got
                assert got.startswith(b"HTTP/1.1") == bool(expected)


def test_a_drip_keeps_no_connection(lively: Trained) -> None:
    def drip(connection: socket.socket) -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            connection.sendall(b"a: b\r\n")
            time.sleep(0.02)

    with (
        served(lively, Limits(upload_timeout_s=0.2)) as server,
        socket.create_connection(("127.0.0.1", server.port), 20) as connection,
    ):
        connection.sendall(b"POST /predict HTTP/1.1\r\n")
        with pytest.raises(OSError):
            drip(connection)


def test_who_does_not_read_the_answer_keeps_no_connection(lively: Trained, photos: list[bytes]) -> None:
    def ask_on(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)

    with served(lively, Limits(upload_timeout_s=1)) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        with pytest.raises(OSError) as error:  # reset, or a broken pipe; not the time of 20 s
            ask_on(connection)
        assert not isinstance(error.value, TimeoutError)
        assert server.send(photos[0]).status == 200


def test_no_more_connections_than_there_are_descriptors_for(
    lively: Trained, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Protocol, "most", 3)
    with served(lively, Limits(upload_timeout_s=5)) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(3)]
        with socket.create_connection(("127.0.0.1", server.port), 20) as fourth:
            got = b""
            while more := fourth.recv(10_000):
                got += more
        head, _, body = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"content-length: %d\r\n" % len(body) in head
        assert json.loads(body) == {"detail": "too many connections; try it later"}
        for connection in idle:
            connection.close()

        def answered() -> bool:
            try:
                return server.send(photos[0]).status == 200
            except OSError:  # reset: the server has not noticed yet that others have left
                return False

        until(answered)
