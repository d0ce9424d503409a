"""Why a request gets no answer."""

from __future__ import annotations

RETRY_AFTER_S = 1


class RefusedError(Exception):
    """A request that is refused.

    Attributes:
        status: of the HTTP response.
        reason: one line, for the client.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason

    @property
    def headers(self) -> dict[str, str]:
        """What goes with the status."""
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}
