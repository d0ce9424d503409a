"""The HTTP service: its routes, and what becomes of a request on its way."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from shard.names import readable
from train.model import statistics
from train.predict.writers import short
from train.serve.batcher import Batcher
from train.serve.classifier import Answer, Classifier, Input
from train.serve.metrics import GONE, Counting, Metrics
from train.serve.refused import RefusedError
from train.serve.upload import FIELD, Budget, Upload, boundary_of, receive
from train.trained import Trained

TOP = 5
_SIDEWAYS = "not turned upright as its camera noted, since the images of the run's dataset were not"
_PATHS = frozenset({"/", "/predict", "/health", "/metrics"})
_LEAST_BUDGET = 1 << 28  # bytes of uploads at a time
_BODIES = 4  # of the largest size, that there is room for at least
# Batches in a row: one or two may have lacked memory for a moment, but after some errors of a GPU every batch fails
# until the process starts anew.
_FAILED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may ask for.

    Attributes:
        max_body_bytes: of a request.
        max_pixels: of an image.
        upload_timeout_s: until the body is there.
        timeout_s: from then on until the answer.
        queue: images that wait for their answer at a time.
        max_batch: images a batch.
        max_wait_s: longest time that a decoded image waits for others.
    """

    max_body_bytes: int = 20_000_000
    max_pixels: int = 64_000_000
    upload_timeout_s: float = 10.0
    timeout_s: float = 30.0
    queue: int = 256
    max_batch: int = 32
    max_wait_s: float = 0.005

    @property
    def budget_bytes(self) -> int:
        """Bytes that all uploads together may take before they are decoded."""
        return max(_LEAST_BUDGET, _BODIES * self.max_body_bytes)


class Service:
    """What the routes work with.

    Args:
        trained: the run.
        limits: of requests.
    """

    def __init__(self, trained: Trained, limits: Limits) -> None:
        self.limits, self.classes = limits, trained.classes
        self.names = readable(trained.classes)
        self.budget = Budget(limits.budget_bytes)
        self.metrics = Metrics(limits.max_batch, lambda: self.batcher.waiting)
        self.batcher: Batcher[Upload, Input, Answer]
        self.about = _describe(trained, self.names)

    def start(self, classifier: Classifier) -> None:
        """Start the threads that decode and the one that computes."""
        limits = self.limits
        self.batcher = Batcher(
            classifier.prepare,
            classifier.run,
            threads=classifier.threads,
            max_batch=limits.max_batch,
            max_wait_s=limits.max_wait_s,
            limit=limits.queue,
        )

    async def predict(self, request: Request, top: int) -> Answer:
        """Read an image and get its answer.

        Raises:
            RefusedError: for whatever reason.
            ClientDisconnect: the client has left.
        """
        limits = self.limits
        self.batcher.require_room()  # before the body is read, and again when it is there
        upload = Upload(self.budget, boundary_of(request), top)
        try:
            await receive(request, upload, max_bytes=limits.max_body_bytes, timeout_s=limits.upload_timeout_s)
            answer = asyncio.wrap_future(self.batcher.submit(upload))
        except BaseException:
            upload.close()
            raise
        return await self._wait(answer, request)

    async def _wait(self, answer: asyncio.Future[Answer], request: Request) -> Answer:
        gone: asyncio.Future[None] = asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {answer, gone}
        try:
            await asyncio.wait(either, timeout=self.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            raise RefusedError(504, f"no answer within {self.limits.timeout_s:g} s")
        finally:
            gone.cancel()
            answer.cancel()  # does nothing to one that is done

    def health(self) -> str:
        """Reason why it does not work; "" where it does."""
        since = self.batcher.running_since
        if not self.batcher.alive:
            return "the thread that computes has ended"
        if since is not None and time.monotonic() - since > self.limits.timeout_s:
            return f"a batch has been computing for more than {self.limits.timeout_s:g} s"
        if (failed := self.batcher.failed) >= _FAILED:
            return f"the last {failed} batches have failed; the log says why, and starting the server anew may help"
        return ""


def make_app(service: Service) -> FastAPI:
    """The application; `service` is started and is closed by whoever made it."""
    app = FastAPI(title=f"feedline: {service.about['run']}", docs_url=None, redoc_url=None)
    app.add_middleware(Counting, metrics=service.metrics, paths=_PATHS)
    _answer_errors(app)

    @app.get("/")
    async def about() -> dict[str, Any]:
        """What the model is, its classes and its input."""
        return service.about

    @app.get("/health")
    async def health() -> Response:
        """200 when predictions are possible: nothing is answered at all before the model is warm."""
        reason = service.health()
        return JSONResponse(
            {"status": reason or "ready", "waiting": service.batcher.waiting}, 503 if reason else 200
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/predict", openapi_extra=_BODY, responses=_REFUSALS)
    async def predict(request: Request, top: Annotated[int, Query(ge=1)] = TOP) -> Response:
        """The likeliest classes of the image that is the body, or the field `file` of a form."""
        if unknown := sorted(set(request.query_params) - {"top"}):
            raise RefusedError(422, f"unknown parameter {unknown[0][:40]!r}; there is top")
        found = await service.predict(request, min(top, len(service.classes)))
        if not all(map(math.isfinite, found.probabilities)):
            raise RefusedError(500, "the network's output is not finite for this image")
        pairs = zip(found.labels, found.probabilities, strict=True)
        said: dict[str, Any] = {"predictions": [_said(service, label, share) for label, share in pairs]}
        return JSONResponse({**said, "note": _SIDEWAYS} if found.sideways else said)

    return app


def _said(service: Service, label: int, probability: float) -> dict[str, Any]:
    name = service.names[label]
    return {
        "class": service.classes[label],
        **({"name": name} if name else {}),
        "probability": short(probability),
    }


_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "a form that is broken, or has another field"},
    408: {"description": "the body took too long"},
    413: {"description": "too many bytes, or too many pixels"},
    415: {"description": "not an image"},
    422: {"description": "a damaged image, an empty one, or a wrong parameter"},
    500: {"description": "the network failed"},
    503: {"description": "too much to do; Retry-After says when to come again"},
    504: {"description": "no answer in time"},
}
_IMAGE = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _IMAGE},
            "multipart/form-data": {
                "schema": {"type": "object", "required": [FIELD], "properties": {FIELD: _IMAGE}}
            },
        },
    }
}


def _describe(trained: Trained, names: tuple[str, ...]) -> dict[str, Any]:
    given = trained.config.input
    mean, std = statistics(trained.config.model)
    classes = [
        {"class": own, **({"name": name} if name else {})}
        for own, name in zip(trained.classes, names, strict=True)
    ]
    return {
        "run": trained.root.resolve().name,
        "arch": trained.config.model.arch,
        "checkpoint": trained.checkpoint.name,
        "epoch": trained.epoch,
        "top1": trained.top1,
        **({"map": trained.map, "multi_label": True} if trained.multi_label else {}),
        "input": {
            "size": given.eval_size,
            "resize": given.eval_resize,
            "interpolation": given.interpolation,
            "exif": trained.images.exif,
            "mean": mean,
            "std": std,
        },
        "classes": classes,
    }


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer_errors(app: FastAPI) -> None:
    """Every error is {"detail": one line}."""

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return JSONResponse({"detail": error.reason}, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        text = f"{request.method} {request.url.path[:80]}: {error.detail}; there is POST /predict"
        return JSONResponse({"detail": text}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse(
            {"detail": f"{first['loc'][-1]} is {str(first['input'])[:40]!r}: {first['msg']}"}, 422
        )

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)  # for the metrics; nobody is there to get it

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": "internal error; the server's log says more"}, 500)
