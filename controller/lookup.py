"""What a request names, held against what the fleet has: models, `auto`, pinned nodes, vocabulary. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.proto.v1 import generation_pb2, inference_pb2

from .errors import BadRequest, NotFound, Unavailable
from .registry import NodeEntry, Registry
from .router import Wanted

AUTO = "auto"
"""The model alias: the largest that serves now."""

MAX_CHOICES = 128

RETRY_AFTER_S = 2.0
"""An engine that died, or an agent that lost its link, is usually back within this."""


def wanted_of(registry: Registry, request: generation_pb2.GenerationRequest, node_id: str | None) -> Wanted:
    """What the router needs to know of the request. Raises BadRequest, NotFound, Unavailable."""
    num_choices = request.n or 1
    if num_choices > MAX_CHOICES:
        raise BadRequest(f"n is {num_choices}, more than {MAX_CHOICES}", param="n")
    model = resolve_model(registry, request.model, node_id)
    known_ids = len(request.prompt.ids.token_ids) if request.prompt.HasField("ids") else 0
    min_context = known_ids + max(0, request.max_tokens) if known_ids else 0
    if not any(entry.state.model.max_model_len >= min_context for entry in registry.ready(model)):
        min_context = 0  # none will do: the engine refuses with the exact numbers
    return Wanted(model, num_choices, node_id or None, min_context)


def resolve_model(registry: Registry, model: str, node_id: str | None = None) -> str:
    """The served name that `model` stands for. Raises NotFound for unknown ones, Unavailable for `auto` when nothing serves."""
    entry: NodeEntry | None = None
    if node_id:
        entry = registry.get(node_id)
        if entry is None:
            raise NotFound(f"there is no node {node_id!r}", code="node_not_found")
        if entry.model_name and model not in (AUTO, entry.model_name):
            message = f"node {node_id} serves {entry.model_name!r}, not {model!r}"
            raise NotFound(message, param="model", code="model_not_found")
    if model != AUTO:
        if not registry.knows_model(model):
            raise NotFound(f"no node serves a model {model!r}", param="model", code="model_not_found")
        return model
    if entry is not None and entry.is_ready:
        return entry.model_name
    names = registry.ready_models()
    if not names or entry is not None:
        raise Unavailable("no model is served at this moment", retry_after_s=RETRY_AFTER_S)
    return names[0]


def require_served(registry: Registry, wanted: Wanted) -> None:
    """Raises Unavailable when there is none: a client learns so at once, and when to come back."""
    if not any(wanted.node_id is None or e.id == wanted.node_id for e in registry.ready(wanted.model)):
        where = f"node {wanted.node_id} does not serve" if wanted.node_id else "no node serves"
        raise Unavailable(f"{where} {wanted.model!r} at this moment", retry_after_s=RETRY_AFTER_S)


def check_against_model(registry: Registry, wanted: Wanted, request: generation_pb2.GenerationRequest) -> None:
    """Ids must be in the vocabulary of the model. Raises BadRequest that names the first which is not."""
    first = next(iter(registry.ready(wanted.model)), None)  # nodes of one name have one vocabulary
    vocab_size = first.state.model.vocab_size if first is not None else 0
    if not vocab_size:
        return  # the node does not say; its engine refuses what it must
    if request.prompt.HasField("ids"):
        check_ids("prompt", request.prompt.ids.token_ids, vocab_size)
    check_ids("stop_token_ids", request.stop_token_ids, vocab_size)
    for token_id in request.sampling.logit_bias:
        if token_id >= vocab_size:
            raise BadRequest(f"token id {token_id} is not below {vocab_size}", param="logit_bias")


def check_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Raises BadRequest with `param` name[i] for the first id that the vocabulary does not have."""
    ids = list(token_ids)
    if not ids or max(ids) < vocab_size:
        return
    index = next(i for i, token_id in enumerate(ids) if token_id >= vocab_size)
    message = f"token id {ids[index]} is not below {vocab_size}, the size of the vocabulary"
    raise BadRequest(message, param=f"{name}[{index}]", code="invalid_token_id")


def served_models(registry: Registry) -> list[inference_pb2.Model]:
    """What serves now, largest first, then `auto`, a copy of the first under that id."""
    models = [_model(name, list(registry.ready(name))) for name in registry.ready_models()]
    if models:
        auto = inference_pb2.Model()
        auto.CopyFrom(models[0])
        auto.id = AUTO
        models.append(auto)
    return models


def _model(name: str, nodes: list[NodeEntry]) -> inference_pb2.Model:
    """Nodes of one name may differ in format and context: the longest context, and what all of them can do."""
    first = nodes[0].state.model
    shared = [c for c in first.capabilities if all(c in e.state.model.capabilities for e in nodes)]
    return inference_pb2.Model(
        id=name,
        max_model_len=max(entry.state.model.max_model_len for entry in nodes),
        size=first.size,
        format=",".join(sorted({entry.state.model.format for entry in nodes})),
        capabilities=shared,
        num_nodes=len(nodes),
    )
