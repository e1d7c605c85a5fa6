"""Reading requests by hand, within limits: the body, a few headers, and the news that the client has gone."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterable

from starlette.types import Receive

from .errors import BadRequest, PayloadTooLarge

MAX_BODY_BYTES = 8 * 1024 * 1024
BODY_TIMEOUT_S = 60.0
"""A body that has not arrived within this is given up."""

MAX_NODE_ID_CHARS = 256

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")

Headers = Iterable[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client closed the connection before its request was complete; nobody is left to answer."""


def header(headers: Headers, name: bytes) -> str | None:
    """The first value under a lower-case name; bytes beyond ASCII as Latin-1."""
    return next((value.decode("latin-1").strip() for key, value in headers if key == name), None)


def request_id(headers: Headers) -> str:
    """The client's X-Request-Id where it is one word of reasonable length, else a new one."""
    given = header(headers, b"x-request-id")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else secrets.token_hex(12)


def pinned_node(headers: Headers) -> str | None:
    """X-Shoal-Node. Raises BadRequest for one that cannot be an id."""
    node_id = header(headers, b"x-shoal-node")
    if node_id is not None and len(node_id) > MAX_NODE_ID_CHARS:
        raise BadRequest(f"X-Shoal-Node: longer than {MAX_NODE_ID_CHARS} characters", param="X-Shoal-Node")
    return node_id or None


async def read_body(headers: Headers, receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """The whole body. Raises PayloadTooLarge as soon as it is known to be beyond the limit, BadRequest when it does not
    come to its end in time, ClientGone."""
    too_large = PayloadTooLarge(f"the body is beyond the limit of {limit} bytes")
    length = header(headers, b"content-length")
    if length is not None and length.isdecimal() and int(length) > limit:
        raise too_large
    parts: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                num_bytes += len(part)
                if num_bytes > limit:
                    raise too_large
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {BODY_TIMEOUT_S:g} s", code="body_timeout") from None


async def wait_gone(receive: Receive) -> None:
    """Returns when the client has closed the connection. Only after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
