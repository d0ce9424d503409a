"""A server in a thread of the test, and requests to it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from train.inference import Network
from train.serve.app import Limits, Service, make_app
from train.serve.classifier import Classifier
from train.serve.server import bind, make_server
from train.trained import Trained

PATIENCE_S = 30.0
_LIMITS = Limits()


FORM = "multipart/form-data; boundary=XX"


def encoded(form: str, **kwargs: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **kwargs)
    return buffer.getvalue()


def form(content: bytes, name: str = "file", boundary: str = "XX") -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n'
    return f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()


def until(true: Callable[[], bool]) -> None:
    """Wait for it."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


class Gate(Network):
    """A network that notes its batches, and holds them while it is shut."""

    def __init__(self, trained: Trained) -> None:
        super().__init__(trained, torch.device("cpu"))
        self.open = threading.Event()
        self.open.set()
        self.batches: list[int] = []
        self.error: Exception | None = None

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Wait, and compute."""
        self.batches.append(len(images))
        assert self.open.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return super().logits(images)


@dataclass
class Reply:
    """What came back."""

    status: int
    said: Any
    headers: http.client.HTTPMessage = field(repr=False)


@dataclass
class Served:
    """A server that is running.

    Attributes:
        port: of 127.0.0.1.
        service: what it answers from.
        gate: its network.
        stop: tells it to end.
        thread: that it runs in.
    """

    port: int
    service: Service
    gate: Gate
    stop: Callable[[], None]
    thread: threading.Thread

    def send(
        self,
        body: bytes | Iterable[bytes] = b"",
        path: str = "/predict",
        method: str = "POST",
        **headers: str,
    ) -> Reply:
        """Send a request and wait for the answer; an iterable goes in chunks, `_` in names of headers stands for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named, encode_chunked=not isinstance(body, bytes))
            answer = connection.getresponse()
            content = answer.read()
            as_json = answer.headers.get_content_type() == "application/json"
            return Reply(answer.status, json.loads(content) if as_json else content.decode(), answer.headers)
        finally:
            connection.close()

    def begin(self, body: bytes, path: str = "/predict") -> Future[Reply]:
        """Send a request in a thread."""
        reply: Future[Reply] = Future()

        def run() -> None:
            try:
                reply.set_result(self.send(body, path))
            except BaseException as error:  # noqa: BLE001  (raised where the result is asked for)
                reply.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return reply

    def metric(self, line: str) -> float:
        """Value of a line of the metrics, 0 where there is none."""
        text = self.send(path="/metrics", method="GET").said
        found = [one.rpartition(" ") for one in text.splitlines()]
        return next((float(value) for name, _, value in found if name == line), 0.0)


@contextmanager
def served(trained: Trained, limits: Limits = _LIMITS) -> Iterator[Served]:
    """Serve as long as the block lasts."""
    service, gate = Service(trained, limits), Gate(trained)
    classifier = Classifier(trained, gate, max_pixels=limits.max_pixels, on_batch=service.metrics.batch)
    service.start(classifier)
    listener = bind("127.0.0.1", 0)
    server = make_server(make_app(service), head_timeout_s=limits.upload_timeout_s, stop_timeout_s=30)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    port = listener.getsockname()[1]
    thread.start()

    def stop() -> None:
        server.should_exit = True

    try:
        until(lambda: server.started)
        yield Served(port, service, gate, stop, thread)
    finally:
        gate.open.set()
        stop()
        thread.join(PATIENCE_S)
        service.batcher.close()
        classifier.close()
        listener.close()
    assert not thread.is_alive()
    assert service.budget.left == limits.budget_bytes, "an upload was not given back"
    assert service.batcher.waiting == 0


def hold(server: Served, image: bytes) -> Future[Reply]:
    """Send an image, whose batch is then held."""
    server.gate.open.clear()
    reply = server.begin(image)
    until(lambda: len(server.gate.batches) == 1)
    return reply


def waiting(server: Served, count: int) -> None:
    """Wait until so many images are inside and decoded."""
    batcher = server.service.batcher
    until(lambda: batcher.waiting == count and batcher.decoding == 0)


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
