"""What operators' machines ask: alive, ready, and the metrics."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .backend import Backend
from .errors import Unavailable

NOT_READY_RETRY_S = 2.0


def service_routes(backend: Backend, render: Callable[[str], tuple[bytes, str]]) -> list[BaseRoute]:
    """GET /healthz, /readyz, /metrics."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        if not backend.models():
            raise Unavailable("no model is served at this moment", code="not_ready", retry_after_s=NOT_READY_RETRY_S)
        return JSONResponse({"status": "ready"})

    async def metrics(request: Request) -> Response:
        page, content_type = render(request.headers.get("accept", ""))
        return Response(page, headers={"content-type": content_type})

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]
