"""Answers by hand, for the two routes that go round the framework, and the error object that every route shares."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
from starlette.types import Send

from .errors import ControllerError, http_status

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

DEFAULT_RETRY_AFTER_S = 1.0

ExtraHeaders = Iterable[tuple[bytes, bytes]]


def error_reply(error: ControllerError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers beside the content type, and body. 429 and 503 always say when to come back."""
    status = http_status(error)
    headers: list[tuple[bytes, bytes]] = []
    if status in (429, 503):
        wait_s = error.retry_after_s if error.retry_after_s is not None else DEFAULT_RETRY_AFTER_S
        headers.append((b"retry-after", str(max(1, math.ceil(wait_s))).encode()))
    return status, headers, msgspec.json.encode(error.body())


async def send_whole(
    send: Send, status: int, body: bytes, headers: ExtraHeaders = (), content_type: bytes = JSON
) -> None:
    """A complete answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ControllerError, headers: ExtraHeaders = ()) -> None:
    """The error object under its status."""
    status, own, body = error_reply(error)
    await send_whole(send, status, body, [*own, *headers])


async def send_stream_start(send: Send, headers: ExtraHeaders) -> None:
    """Opens a stream of events that no proxy should hold back."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", EVENT_STREAM),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
                *headers,
            ],
        }
    )
