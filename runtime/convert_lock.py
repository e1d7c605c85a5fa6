"""One conversion of one target at a time; the system releases the lock when its holder dies, however it dies."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

POLL_S = 0.2

if sys.platform == "win32":
    import msvcrt

    def _is_taken(file: BinaryIO) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return True
        return False

else:
    import fcntl

    def _is_taken(file: BinaryIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextmanager
def conversion_lock(path: Path) -> Iterator[None]:
    """Wait until no other process holds `path`, and hold it. Only who has made what the lock is about may remove the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        while _is_taken(file):
            time.sleep(POLL_S)
        yield  # closing the file releases the lock
