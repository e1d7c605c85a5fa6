"""Frames in and out of a process over two file descriptors.

What the pipe has room for is written at once. The rest has a thread of its own behind a bounded outbox: a reader that pauses
makes writers wait, never the thread that reads. `read_frame` blocks; nothing here decodes.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections import deque

from .wire import frame_length

MAX_OUTBOX_BYTES = 128 * 1024 * 1024
"""Frames that wait for the pipe. Beyond it `put` waits: the engine stops rather than fill the memory. Two frames of the
largest size fit."""

_PREFIX_BYTES = 4
_CHUNK_BYTES = 1024 * 1024


def claim_standard_streams() -> tuple[int, int]:
    """The process's stdin and stdout as (input, output), in binary.

    Their numbers 0 and 1 are given to an empty file and to stderr, so that a stray `print`, or a library that reads, cannot
    touch the conversation.
    """
    sys.stdout.flush()
    input_fd, output_fd = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        for fd in (input_fd, output_fd):
            msvcrt.setmode(fd, os.O_BINARY)
    return input_fd, output_fd


def read_frame(fd: int) -> bytes | None:
    """Body of the next frame; None at the end of the stream, even within a frame. Raises FrameError when it is too long."""
    prefix = _read_exactly(fd, _PREFIX_BYTES)
    return None if prefix is None else _read_exactly(fd, frame_length(prefix))


def _read_exactly(fd: int, count: int) -> bytes | None:
    pieces = bytearray()
    while len(pieces) < count:
        try:
            piece = os.read(fd, min(count - len(pieces), _CHUNK_BYTES))
        except OSError:
            return None  # a broken pipe ends the stream, like its end
        if not piece:
            return None
        pieces += piece
    return bytes(pieces)


class Outbox:
    """Frames on their way out, in order. A thread writes those for which the pipe has no room now."""

    def __init__(self, fd: int, max_bytes: int = MAX_OUTBOX_BYTES) -> None:
        self._fd = fd
        self._max_bytes = max_bytes
        self._frames: deque[bytes] = deque()
        self._num_bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._room = _Room(fd)
        self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._thread.start()

    def put(self, frame: bytes) -> bool:
        """Queue a frame, waiting for room. False: nobody listens any more, and it is dropped."""
        with self._changed:
            if not self._num_bytes and not self._is_closed and self._room.takes(len(frame)):
                # A token's frame. Another thread that woke up for it would take a processor from the next step.
                if _write_all(self._fd, frame):
                    return True
                self._is_closed = True
                self._changed.notify_all()
                return False
            self._changed.wait_for(lambda: self._is_closed or self._num_bytes + len(frame) <= self._max_bytes)
            if self._is_closed:
                return False
            self._frames.append(frame)
            self._num_bytes += len(frame)
            self._changed.notify_all()
            return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is written. False when it was not within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_closed or not self._num_bytes, timeout_s)

    def close(self) -> None:
        """Take nothing more and wake those who wait. What is queued may be lost."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or bool(self._frames))
                if self._is_closed:
                    return
                # Everything that waits goes out in one call: a batch a system call, not a frame.
                chunk = b"".join(self._frames)
                self._frames.clear()
            if not _write_all(self._fd, chunk):
                self.close()
                return
            with self._changed:
                self._num_bytes -= len(chunk)
                self._changed.notify_all()


class _Room:
    """Whether a write to a pipe returns at once; never where the system cannot tell."""

    def __init__(self, fd: int) -> None:
        self._poll: select.poll | None = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)

    def takes(self, num_bytes: int) -> bool:
        """A pipe that is writable at all takes PIPE_BUF bytes."""
        if self._poll is None or num_bytes > select.PIPE_BUF:
            return False
        return any(event == select.POLLOUT for _, event in self._poll.poll(0))


def _write_all(fd: int, chunk: bytes) -> bool:
    rest = memoryview(chunk)
    while rest:
        try:
            rest = rest[os.write(fd, rest[:_CHUNK_BYTES]) :]
        except OSError:
            return False
    return True
