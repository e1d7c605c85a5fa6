"""The HTTP application: which path goes where. The two generation routes go round the framework, all else is Starlette.

/healthz /readyz /metrics            service_routes
/v1/models[/ID]                      models_routes
/v1/completions /v1/chat/completions openai_route
/tokenize /detokenize                tokenize_routes
/admin/v1/...                        admin_routes
/ /console /console/...              console
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from dataclasses import dataclass
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .admin_routes import RequestLog, admin_routes
from .backend import Backend
from .console import console_routes
from .errors import ControllerError, MethodNotAllowed, NotFound
from .http_reply import error_reply
from .models_routes import models_routes
from .openai_route import GenerationRoute, OpenRequests
from .openai_writer import CHAT, COMPLETIONS
from .service_routes import service_routes
from .tokenize_routes import tokenize_routes

_log = logging.getLogger(__name__)


class MetricsRenderer(Protocol):
    """`metrics.Metrics` as this edge sees it."""

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, for an Accept header (empty when there is none)."""
        ...


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What the gateway is told. `version` is shown on the console."""

    version: str = ""


def build_app(backend: Backend, metrics: MetricsRenderer, request_log: RequestLog, config: GatewayConfig) -> ASGIApp:
    """The application, to be served by `http_server.serve`."""
    framework = Starlette(
        routes=[
            *service_routes(backend, metrics.render),
            *models_routes(backend),
            *tokenize_routes(backend),
            *admin_routes(backend, request_log),
            *console_routes(backend, request_log, config.version),
        ],
        exception_handlers={ControllerError: _on_error, HTTPException: _on_http_exception, Exception: _on_bug},
    )
    open_requests = OpenRequests()
    hot = {
        "/v1/chat/completions": GenerationRoute(CHAT, backend, open_requests),
        "/v1/completions": GenerationRoute(COMPLETIONS, backend, open_requests),
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        route = hot.get(scope["path"]) if scope["type"] == "http" else None
        if route is not None:
            await route(scope, receive, send)
            return
        # The framework answers and logs a bug of ours (`_on_bug`), then raises it again for the server's log.
        with contextlib.suppress(Exception):
            await framework(scope, receive, send)

    return app


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ControllerError)
    status, headers, body = error_reply(error)
    return Response(body, status, {k.decode(): v.decode() for k, v in headers}, "application/json")


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: unknown routes and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        reply = await _on_error(request, MethodNotAllowed(f"{request.method} is not allowed here, {allow} is"))
        reply.headers["allow"] = allow
        return reply
    if error.status_code == 404:
        return await _on_error(request, NotFound("there is no such route", code="route_not_found"))
    return await _on_error(request, ControllerError(str(error.detail)))


async def _on_bug(request: Request, error: Exception) -> Response:
    # The message of an exception may quote what a client sent; its place in the code does not.
    place = "".join(traceback.format_tb(error.__traceback__))
    _log.error("%s %s failed: %s\n%s", request.method, request.scope["path"], type(error).__name__, place)
    return await _on_error(request, ControllerError("the gateway failed; the request may be tried again"))
