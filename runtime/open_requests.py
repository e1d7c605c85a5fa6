"""Requests between their frame's arrival and their last output, as all threads of the process see them.

One bound for everything on the way: what is being tokenised, waits or runs.
"""

from __future__ import annotations

import threading

from .refusals import DuplicateRequest, QueueFull

MAX_OPEN_REQUESTS = 1024
"""Requests that the process has taken and not ended. The slot credits of a fleet stay far below."""

MAX_OPEN_BYTES = 256 * 1024 * 1024
"""Bytes of their frames."""

Key = tuple[str, int]


class OpenRequests:
    """Keys with the size of their frame. Every method may be called from any thread."""

    def __init__(self, max_requests: int = MAX_OPEN_REQUESTS, max_bytes: int = MAX_OPEN_BYTES) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: dict[Key, int] = {}
        self._aborted: set[Key] = set()
        self._num_bytes = 0

    def open(self, key: Key, num_bytes: int) -> None:
        """Raises QueueFull at a bound, DuplicateRequest for a key that is open."""
        with self._lock:
            if key in self._sizes:
                raise DuplicateRequest("a request of this id and attempt runs already")
            if len(self._sizes) >= self._max_requests or self._num_bytes + num_bytes > self._max_bytes:
                raise QueueFull(f"{len(self._sizes)} requests are open already")
            self._sizes[key] = num_bytes
            self._num_bytes += num_bytes

    def abort(self, key: Key) -> bool:
        """Mark it. False for one that is not open, or marked already: nothing to do."""
        with self._lock:
            if key not in self._sizes or key in self._aborted:
                return False
            self._aborted.add(key)
            return True

    def is_aborted(self, key: Key) -> bool:
        with self._lock:
            return key in self._aborted

    def close(self, key: Key) -> None:
        """Its last output is on its way."""
        with self._lock:
            self._num_bytes -= self._sizes.pop(key, 0)
            self._aborted.discard(key)
