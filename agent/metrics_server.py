"""One page over HTTP/1.1: GET /metrics, GET /healthz, nothing else, one answer a connection.

A scraper on the same machine asks for it every few seconds, so a whole HTTP server would be more than it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import httptools

REQUEST_TIMEOUT_S = 5.0
MAX_REQUEST_BYTES = 16 * 1024
MAX_CONNECTIONS = 16
"""More scrapers than this at once are turned away."""

Render = Callable[[str], tuple[bytes, str]]
"""From an Accept header to a page and its content type."""


class MetricsServer:
    """Answers on one address."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._num_connections = 0

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int) -> AsyncIterator[str]:
        """Serve while the context is open; gives the page's URL. Raises OSError when the address is taken."""
        server = await asyncio.start_server(self._answer, host, port, limit=MAX_REQUEST_BYTES)
        bound_host, bound_port = server.sockets[0].getsockname()[:2]
        if ":" in bound_host:
            bound_host = f"[{bound_host}]"
        try:
            yield f"http://{bound_host}:{bound_port}/metrics"
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_connections += 1
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                if self._num_connections > MAX_CONNECTIONS:
                    response = _response(503, b"busy\n")
                else:
                    response = self._respond(_parse(await reader.readuntil(b"\r\n\r\n")))
                writer.write(response)
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass  # the scraper went away or never asked
        except asyncio.LimitOverrunError:
            writer.write(_response(431, b"too large\n"))
        except httptools.HttpParserError:
            writer.write(_response(400, b"not HTTP\n"))
        finally:
            self._num_connections -= 1
            writer.close()

    def _respond(self, request: _Request) -> bytes:
        if request.path not in (b"/metrics", b"/healthz"):
            return _response(404, b"not found\n")
        if request.method not in (b"GET", b"HEAD"):
            return _response(405, b"only GET\n", extra="Allow: GET, HEAD\r\n")
        if request.path == b"/healthz":
            body, content_type = b"ok\n", "text/plain; charset=utf-8"
        else:
            body, content_type = self._render(request.accept)
        return _response(200, body, content_type, with_body=request.method == b"GET")


class _Request:
    """Receives what the parser finds in one request head."""

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.accept = ""

    def on_url(self, url: bytes) -> None:
        self.path = httptools.parse_url(url).path

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"accept":
            self.accept = value.decode("latin-1")


def _parse(head: bytes) -> _Request:
    """Raises httptools.HttpParserError for what is not the head of a request."""
    request = _Request()
    parser = httptools.HttpRequestParser(request)
    parser.feed_data(head)
    request.method = parser.get_method()
    return request


_REASON = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def _response(
    status: int,
    body: bytes,
    content_type: str = "text/plain; charset=utf-8",
    *,
    extra: str = "",
    with_body: bool = True,
) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASON[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n"
    )
    return head.encode("latin-1") + (body if with_body else b"")
