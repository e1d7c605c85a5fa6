"""GET /v1/models and /v1/models/ID: what serves now, in OpenAI's shape with a few fields more."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from shoal.proto.v1 import inference_pb2

from .backend import Backend
from .errors import NotFound

ALIAS = "auto"


def model_view(model: inference_pb2.Model, root: str) -> dict[str, Any]:
    """One model; `root` is the one that an alias stands for, else its own id.

    `created` is 0: nobody knows when weights were made, and OpenAI's clients want a number.
    """
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": "shoal",
        "root": root,
        "max_model_len": model.max_model_len,
        "size": model.size,
        "format": model.format,
        "capabilities": list(model.capabilities),
        "num_nodes": model.num_nodes,
    }


def models_routes(backend: Backend) -> list[BaseRoute]:
    """The alias `auto` comes last, with the fields of the model that it stands for, which is the first."""

    def views() -> list[dict[str, Any]]:
        models = backend.models()
        return [model_view(model, models[0].id if model.id == ALIAS else model.id) for model in models]

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": views()})

    async def show_model(request: Request) -> Response:
        wanted = request.path_params["model_id"]
        for view in views():
            if view["id"] == wanted:
                return JSONResponse(view)
        raise NotFound(f"no node serves a model {wanted!r}", param="model", code="model_not_found")

    return [
        Route("/v1/models", list_models, methods=["GET"]),
        # Ids of hub repositories have a slash.
        Route("/v1/models/{model_id:path}", show_model, methods=["GET"]),
    ]
