"""The body of a request, within limits: of its own size, of its time, and of what all bodies take together."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from train.serve.refused import RefusedError

FIELD = "file"
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each form that is broken
_COST = 1 << 16  # bytes: what the server buffers of a body before it is read, counted for each


class Budget:
    """Bytes that all bodies together may take.

    Attributes:
        left: of them.
    """

    def __init__(self, size_bytes: int) -> None:
        self.left, self._lock = size_bytes, threading.Lock()

    def take(self, size_bytes: int) -> None:
        """Take some.

        Raises:
            RefusedError: there are not as many left.
        """
        with self._lock:
            if size_bytes > self.left:
                raise RefusedError(503, "too many uploads at a time; try again later")
            self.left -= size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self.left += size_bytes


@dataclass(slots=True)
class Upload:
    """A body, or what there is of it.

    Attributes:
        budget: what it counts in.
        boundary: of the parts, if it is a form.
        top: how many classes the client wants to hear of.
        data: the bytes, when all have come.
    """

    budget: Budget
    boundary: bytes | None
    top: int
    data: bytes = b""
    _taken: int = 0

    def take(self, size_bytes: int) -> None:
        """Count bytes in; see `Budget.take`."""
        self.budget.take(size_bytes)
        self._taken += size_bytes

    def close(self) -> None:
        """Forget the bytes."""
        self.data, taken, self._taken = b"", self._taken, 0
        self.budget.give_back(taken)

    def image(self) -> bytes:
        """The image that was uploaded.

        Raises:
            RefusedError: a form that is broken, or has another field than `FIELD`.
        """
        if self.boundary is None:
            return self.data
        try:
            return _Form(self.boundary).image(self.data)
        except FormParserError as error:
            raise RefusedError(400, f"the form is broken: {error}"[:200]) from error


async def receive(request: Request, upload: Upload, *, max_bytes: int, timeout_s: float) -> None:
    """Read the body; no more of it is held than `max_bytes`.

    Raises:
        RefusedError: too large, too slow, or too much with all others.
        ClientDisconnect: the client has left.
    """
    too_large = RefusedError(413, f"the body is larger than {max_bytes:,} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    upload.take(_COST)

    async def read() -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                raise too_large
            upload.take(len(part))
            parts.append(part)
        return b"".join(parts)

    try:
        upload.data = await asyncio.wait_for(read(), timeout_s)
    except asyncio.TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {timeout_s:g} s") from None


def boundary_of(request: Request) -> bytes | None:
    """What separates the parts of a form; None where the body is the image itself.

    Any type is taken for an image but text and JSON: curl's --data-binary says that it sends the fields of a form.

    Raises:
        RefusedError: no image by its type, a form without boundary, or compressed.
    """
    if encoding := request.headers.get("content-encoding", "").strip():
        raise RefusedError(
            415, f"Content-Encoding {encoding[:40]!r} is not understood; send the image as it is"
        )
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"multipart/form-data":
        if not options.get(b"boundary"):
            raise RefusedError(400, "multipart/form-data without a boundary")
        return options[b"boundary"]
    if kind.startswith((b"text/", b"application/json", b"multipart/")):
        raise RefusedError(
            415,
            f"Content-Type is {kind.decode('latin-1')[:40]!r}; send an image, or a form with a field {FIELD!r}",
        )
    return None


class _Form:
    """Takes the field out of a multipart/form-data (RFC 7578)."""

    def __init__(self, boundary: bytes) -> None:
        self._name, self._parts = "", 0
        self._header = self._value = b""
        self._content = bytearray()
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_begin": self._begin_header,
                "on_header_field": self._add_header,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_content,
                "on_end": self._end,
            },
        )

    def image(self, data: bytes) -> bytes:
        """Content of the field; raises as `Upload.image`, or FormParserError."""
        self._parser.write(data)
        self._parser.finalize()
        if not self._ended:
            raise RefusedError(400, "the form is cut off: its last boundary is missing")
        return bytes(self._content)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > 1:
            raise RefusedError(400, f"the form has several parts; send one, named {FIELD!r}")

    def _begin_header(self) -> None:
        self._header = self._value = b""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"").decode("utf-8", "replace")

    def _end_headers(self) -> None:
        if self._name != FIELD:
            raise RefusedError(400, f"the form has a field {self._name[:40]!r}; send one, named {FIELD!r}")

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _end(self) -> None:
        self._ended = True
