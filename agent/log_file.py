"""A log file that never grows beyond a bound: one current file and one older generation."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

MAX_LOG_BYTES = 5 * 1024 * 1024
"""At this size the file is moved aside to `<name>.1`, replacing the one that lay there."""


class BoundedLog:
    """Appends bytes. A disk that refuses them loses the lines, not the process that wrote them."""

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._size = 0

    def write(self, chunk: bytes) -> None:
        """Append, moving the file aside first when it would pass the bound."""
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
                self._size = self._file.tell()
            if self._size and self._size + len(chunk) > self._max_bytes:
                self._file.close()
                self.path.replace(self.path.with_name(self.path.name + ".1"))
                self._file = self.path.open("ab", buffering=0)
                self._size = 0
            self._file.write(chunk[-self._max_bytes :])
            self._size += min(len(chunk), self._max_bytes)
        except OSError:
            self.close()

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None
