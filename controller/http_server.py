"""The HTTP server: uvicorn with httptools, inside a loop that others share, and with bounds of our own on each connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import BadRequest, ControllerError

KEEP_ALIVE_S = 15
"""A client that resets its connection keeps its timer until then, so it is short."""

HEAD_TIMEOUT_S = 20.0
"""From a connection's opening, or a request's first byte, to the end of the request's headers."""

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
MAX_CONNECTIONS = 10_000
MAX_DISCARDED_BYTES = 64 * 1024 * 1024
"""What a client may still send of a body that was refused. Closing at once would reset the connection, and the client
would never read why."""

SHUTDOWN_S = 2.0
"""What is in flight may end within this, then it is cancelled."""

BACKLOG = 2048


class HeadTooLarge(ControllerError):
    """Of a connection, not of a request: there is none yet."""

    code = "headers_too_large"
    type = "invalid_request_error"


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0
    _num_headers = 0
    _discarded_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._head_bytes = self._num_headers = self._discarded_bytes = 0
        self._start_head_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.transport.abort()
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """The error object like everywhere. Only for what is no HTTP at all: no route has seen it."""
        self._send_and_close(b"400 Bad Request", BadRequest(msg, code="invalid_http"))

    def _count_head(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > MAX_HEAD_BYTES or self._num_headers > MAX_HEADERS:
            message = f"more than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} fields of headers"
            self._send_and_close(b"431 Request Header Fields Too Large", HeadTooLarge(message))
            # The parser gives this back to `data_received`, which finds the connection closing.
            raise HeadTooLarge(message)

    def _send_and_close(self, status: bytes, error: ControllerError) -> None:
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(error.body())
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)
        self.transport.close()

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        # A pipelined request may be read slowly while the one before it is answered: that answer is not cut.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Server(uvicorn.Server):
    """Signals belong to whoever owns the process; `on_bound` hears of the listening socket."""

    def __init__(self, config: uvicorn.Config, on_bound: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_bound = on_bound

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_bound()


async def serve(app: ASGIApp, host: str, port: int, on_bound: Callable[[str, int], None] | None = None) -> None:
    """Serves until cancelled; then stops listening, gives what is in flight SHUTDOWN_S, and raises CancelledError.

    `on_bound` is called once with the address in use, when requests are served. Raises OSError when it cannot listen there.
    """
    listener = _listen(host, port)
    bound: tuple[Any, ...] = listener.getsockname()
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.CRITICAL,  # its messages quote requests; what matters is logged by us
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=None,
        backlog=BACKLOG,
    )
    server = _Server(config, lambda: on_bound(bound[0], bound[1]) if on_bound is not None else None)
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(server.serve(sockets=[listener]), name="http server")
            try:
                # Shielded: uvicorn ends by a flag, and with its connections closed, not by being cancelled.
                await asyncio.shield(running)
            except asyncio.CancelledError:
                server.should_exit = True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SHUTDOWN_S):
                        await asyncio.shield(running)
                server.force_exit = True
                for task in list(server.server_state.tasks):
                    task.cancel()
                raise
    finally:
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
