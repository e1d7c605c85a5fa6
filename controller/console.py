"""The console: one page that shows nodes and the latest requests, and stays current.

The page is complete without scripts (it then reloads itself); with them a few lines fetch the fragment of the two tables.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from .admin_routes import RequestLog
from .admin_view import node_view, request_view, total_watts
from .backend import Backend
from .console_format import FILTERS, Rates
from .errors import NotFound

MAX_SHOWN_NODES = 500
"""Rows of one page; how many there are besides is said."""

MAX_SHOWN_REQUESTS = 20

_HERE = Path(__file__).parent
_STATIC_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}

_STATE_ORDER = {"failed": 0, "lost": 1, "loading": 2, "draining": 3, "ready": 4}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file of the console, read once. `tag` changes with its content."""

    content: bytes
    content_type: str
    tag: str


def console_routes(backend: Backend, request_log: RequestLog, version: str) -> list[BaseRoute]:
    """GET /, /console, /console/live and /console/static/NAME."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    static = load_static(_HERE / "static")
    tags = {name: file.tag for name, file in static.items()}
    rates = Rates()

    async def tables() -> dict[str, Any]:
        views = [node_view(node) for node in backend.nodes()]
        speeds = rates.observe({v["id"]: v["generation_tokens"] for v in views}, time.monotonic())
        records = await request_log.recent(MAX_SHOWN_REQUESTS)
        rows = [node_row(view, speeds.get(view["id"])) for view in views]
        return {
            "nodes": sorted(rows, key=lambda row: (_STATE_ORDER.get(row["state"], 2), row["id"]))[:MAX_SHOWN_NODES],
            "num_nodes": len(views),
            "summary": summary(views, speeds),
            "requests": [request_view(record) for record in records],
            "models": [model for model in backend.models() if model.id != "auto"],
        }

    async def page(request: Request) -> Response:
        html = environment.get_template("console.html").render(await tables(), version=version, tags=tags)
        return Response(html, media_type="text/html", headers=_HEADERS)

    async def live(request: Request) -> Response:
        html = environment.get_template("tables.html").render(await tables())
        return Response(html, media_type="text/html", headers=_HEADERS)

    async def static_file(request: Request) -> Response:
        file = static.get(request.path_params["name"])
        if file is None:
            raise NotFound("there is no such file", code="route_not_found")
        # Pages name files with their tag, so what is cached can never be stale.
        headers = {
            **_HEADERS,
            "content-type": file.content_type,
            "cache-control": "public, max-age=31536000, immutable",
        }
        return Response(file.content, headers=headers)

    async def root(request: Request) -> Response:
        return RedirectResponse("/console", status_code=302)

    return [
        Route("/", root, methods=["GET"]),
        Route("/console", page, methods=["GET"]),
        Route("/console/live", live, methods=["GET"]),
        Route("/console/static/{name}", static_file, methods=["GET"]),
    ]


def load_static(folder: Path) -> dict[str, StaticFile]:
    """Every file of a kind that the console has, by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        content_type = _STATIC_TYPES.get(path.suffix)
        if content_type is not None:
            content = path.read_bytes()
            found[path.name] = StaticFile(content, content_type, hashlib.sha256(content).hexdigest()[:12])
    return found


def node_row(view: dict[str, Any], tokens_per_s: float | None) -> dict[str, Any]:
    """What a row shows beside the view. Measurements of a lost node are history: they are not shown as now."""
    busy = None if view["running"] is None else view["running"] + (view["waiting"] or 0)
    row = {**view, "watts": total_watts(view), "tokens_per_s": tokens_per_s, "busy": busy}
    if view["state"] == "lost":
        row |= dict.fromkeys(("running", "waiting", "busy", "tokens_per_s", "watts", "resident_bytes", "rtt_s"))
    return row


def summary(views: list[dict[str, Any]], speeds: dict[str, float]) -> dict[str, Any]:
    """The line above the tables."""
    present = [view for view in views if view["state"] != "lost"]
    watts = [watts for view in present if (watts := total_watts(view)) is not None]
    return {
        "ready": sum(view["state"] == "ready" for view in present),
        "running": sum(view["running"] or 0 for view in present),
        "waiting": sum(view["waiting"] or 0 for view in present),
        "slots": sum(view["slots"] for view in present if view["state"] == "ready"),
        "tokens_per_s": sum(speeds[view["id"]] for view in present if view["id"] in speeds) if speeds else None,
        "watts": sum(watts) if watts else None,
        "num_measured": len(watts),
    }
