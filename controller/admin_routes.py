"""GET /admin/v1/...: what the command line and the console know of nodes and requests."""

from __future__ import annotations

from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .admin_view import node_view, request_view
from .backend import Backend
from .errors import BadRequest, NotFound
from .request_record import RequestRecord

DEFAULT_REQUESTS = 100
MAX_REQUESTS = 1000


class RequestLog(Protocol):
    """The ledger, as this edge reads it."""

    async def recent(self, limit: int) -> list[RequestRecord]:
        """The newest ended requests, newest first."""
        ...

    async def get(self, request_id: str) -> RequestRecord | None:
        """One ended request; None when it is not known."""
        ...


def admin_routes(backend: Backend, request_log: RequestLog) -> list[BaseRoute]:
    """All of them read; none writes."""

    async def list_nodes(request: Request) -> Response:
        return _json({"nodes": [node_view(node) for node in backend.nodes()]})

    async def show_node(request: Request) -> Response:
        wanted = request.path_params["node_id"]
        for node in backend.nodes():
            if node.id == wanted:
                return _json(node_view(node))
        raise NotFound(f"there is no node {wanted!r}", code="node_not_found")

    async def list_requests(request: Request) -> Response:
        records = await request_log.recent(read_limit(request.query_params.get("limit")))
        return _json({"requests": [request_view(record) for record in records]})

    async def show_request(request: Request) -> Response:
        wanted = request.path_params["request_id"]
        record = await request_log.get(wanted)
        if record is None:
            raise NotFound("there is no ended request with this id", code="request_not_found")
        return _json(request_view(record))

    return [
        Route("/admin/v1/nodes", list_nodes, methods=["GET"]),
        Route("/admin/v1/nodes/{node_id:path}", show_node, methods=["GET"]),
        Route("/admin/v1/requests", list_requests, methods=["GET"]),
        Route("/admin/v1/requests/{request_id}", show_request, methods=["GET"]),
    ]


def read_limit(text: str | None) -> int:
    """`?limit=N`, 1 to MAX_REQUESTS. Raises BadRequest."""
    if text is None:
        return DEFAULT_REQUESTS
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_REQUESTS):
        raise BadRequest(f"limit: must be 1 to {MAX_REQUESTS}", param="limit")
    return int(text)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers={"cache-control": "no-store"})
