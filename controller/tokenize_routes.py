"""POST /tokenize and /detokenize: ids of a prompt exactly as a generation request would see them, and back."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from shoal.proto.v1 import generation_pb2

from .backend import Backend
from .errors import BadRequest
from .http_body import ClientGone, read_body
from .openai_chat_request import ABSENT, conversation
from .openai_completions_request import MAX_PROMPT_IDS
from .openai_fields import token_ids
from .openai_json import decode_body


class TokenizeFields(msgspec.Struct):
    """Either a raw text or a conversation."""

    model: str = "auto"
    prompt: str | None = None
    messages: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    chat_template_kwargs: msgspec.Raw = ABSENT
    add_generation_prompt: bool | None = None


class DetokenizeFields(msgspec.Struct):
    """Special tokens are part of the text."""

    tokens: list[int]
    model: str = "auto"


_TOKENIZE = msgspec.json.Decoder(TokenizeFields)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeFields)


def tokenize_routes(backend: Backend) -> list[BaseRoute]:
    """The two routes."""

    async def tokenize(request: Request) -> Response:
        fields = decode_body(await _body(request), _TOKENIZE)
        found = await backend.tokenize(fields.model, tokenize_prompt(fields))
        return _json({"tokens": found, "count": len(found)})

    async def detokenize(request: Request) -> Response:
        fields = decode_body(await _body(request), _DETOKENIZE)
        ids = list(token_ids(fields.tokens, "tokens", MAX_PROMPT_IDS))
        return _json({"prompt": await backend.detokenize(fields.model, ids) if ids else ""})

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]


def tokenize_prompt(fields: TokenizeFields) -> generation_pb2.Prompt:
    """Raises BadRequest when it is neither or both."""
    has_messages = bytes(fields.messages) != b"null"
    if has_messages == (fields.prompt is not None):
        raise BadRequest("prompt or messages is required, and not both", param="messages" if has_messages else "prompt")
    if fields.prompt is not None:
        return generation_pb2.Prompt(text=fields.prompt)
    prompt = conversation(fields.messages, fields.tools, fields.chat_template_kwargs)
    if fields.add_generation_prompt is not None:
        prompt.conversation.add_generation_prompt = fields.add_generation_prompt
    return prompt


async def _body(request: Request) -> bytes:
    try:
        return await read_body(request.headers.raw, request.receive)
    except ClientGone:
        raise BadRequest("the client went away") from None


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
