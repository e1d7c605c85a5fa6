"""What the caller of `generate` holds: the outputs of one request as they arrive, bounded, until the end or an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Self

from shoal.proto.v1 import generation_pb2

from .errors import ControllerError

MAX_BUFFERED_OUTPUTS = 4096
"""Outputs that a client may lag behind: at a hundred tokens a second about forty seconds."""

MAX_BUFFERED_BYTES = 32 * 1024 * 1024
"""The same in bytes; one output may be larger (logprobs of a whole prompt)."""


class BufferFull(Exception):
    """The client reads too slowly."""


class Answer:
    """Implements `backend.OutputStream`. One reader; dispatch pushes."""

    def __init__(self, request_id: str, node_id: str, on_close: Callable[[], None]) -> None:
        self.request_id = request_id
        self.node_id = node_id
        self.attempts = 1
        self._on_close = on_close
        self._buffer: list[generation_pb2.Output] = []
        self._buffered_bytes = 0
        self._error: ControllerError | None = None
        self._is_ended = False
        self._news = asyncio.Event()

    # --- dispatch ---

    def push(self, outputs: list[generation_pb2.Output]) -> None:
        """Raises BufferFull, and then nothing was taken."""
        size = sum(output.ByteSize() for output in outputs)
        if self._buffer and (
            len(self._buffer) + len(outputs) > MAX_BUFFERED_OUTPUTS or self._buffered_bytes + size > MAX_BUFFERED_BYTES
        ):
            raise BufferFull
        self._buffer += outputs
        self._buffered_bytes += size
        self._news.set()

    def end(self, error: ControllerError | None = None) -> None:
        """Nothing comes after what is buffered; then `error` is raised, if there is one. The first call counts."""
        if not self._is_ended:
            self._is_ended = True
            self._error = error
            self._news.set()

    # --- the caller ---

    def __aiter__(self) -> AsyncIterator[list[generation_pb2.Output]]:
        return self

    async def __anext__(self) -> list[generation_pb2.Output]:
        """Everything that has arrived since the last call, in order."""
        while not self._buffer:
            if self._is_ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        outputs, self._buffer = self._buffer, []
        self._buffered_bytes = 0
        return outputs

    async def aclose(self) -> None:
        """Cancels what has not finished, all the way to the engine. Safe to call twice, and after the end."""
        self.end()
        self._on_close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
