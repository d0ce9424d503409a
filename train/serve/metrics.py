"""What Prometheus asks for."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

GONE = 499  # nginx's: the client left before there was an answer
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one server, in a registry of its own.

    Args:
        max_batch: images.
        waiting: how many images are waiting.
    """

    def __init__(self, max_batch: int, waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "feedline_requests", "Requests answered, by status", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "feedline_predict_seconds",
            "From a request's head to the end of its answer, upload included",
            registry=registry,
            buckets=_SECONDS,
        )
        sizes = [size for power in range(16) if (size := 1 << power) < max_batch]
        self.batches = Histogram(
            "feedline_batch_images", "Images a batch", registry=registry, buckets=[*sizes, max_batch]
        )
        self.images = Counter("feedline_images", "Images predicted", registry=registry)
        Gauge(
            "feedline_waiting_images", "Images uploaded and not yet answered", registry=registry
        ).set_function(waiting)
        ProcessCollector(registry=registry)  # memory, CPU time, open files

    def batch(self, size: int) -> None:
        """Note a batch."""
        self.batches.observe(size)
        self.images.inc(size)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class Counting:
    """ASGI middleware that counts requests and times predictions.

    Args:
        app: what answers.
        metrics: where they are counted.
        paths: that are told apart; any other counts as "other".
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500  # if it raises before it answers

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status).inc()
            if path == "/predict" and scope["method"] == "POST":
                self._metrics.seconds.observe(time.perf_counter() - begin)
