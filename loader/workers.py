"""What works in the background of a loader: threads that read, a backend that decodes, and the feed of batches."""

from __future__ import annotations

from collections.abc import Callable

from loader.backend import Backend
from loader.feed import Feed
from loader.reader import Reads


class Workers:
    """Made when they are first needed, and kept from epoch to epoch.

    Args:
        make_backend: starts a backend. Must not refer to the loader, or nothing would end when that is forgotten.
        make_reads: starts the threads that read; the same holds.
    """

    def __init__(self, make_backend: Callable[[], Backend], make_reads: Callable[[], Reads]) -> None:
        self._make_backend, self._make_reads = make_backend, make_reads
        self._backend: Backend | None = None
        self._reads: Reads | None = None
        self._feed: Feed | None = None

    def feed(self, start: Callable[[Reads, Backend], Feed]) -> Feed:
        """Start a feed; the one before is to be abandoned first."""
        if self._backend is None:
            self._backend = self._make_backend()
        if self._reads is None:
            self._reads = self._make_reads()
        self._feed = start(self._reads, self._backend)
        return self._feed

    def abandon(self) -> None:
        """Forget batches in flight. Their backend goes with them: a new one is surely clean."""
        if self._feed is not None and self._feed.busy:
            self._drop_backend()
        self._feed = None

    def close(self) -> None:
        """Stop all threads and free memory."""
        self._feed = None
        self._drop_backend()
        if self._reads is not None:
            self._reads.close()
            self._reads = None

    def _drop_backend(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None
