"""POST /v1/completions: the body to generation requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from shoal.proto.v1 import generation_pb2

from .errors import BadRequest
from .openai_ask import Ask, Form
from .openai_fields import (
    SharedFields,
    check_stream_options,
    generation_request,
    refuse_unsupported,
    token_ids,
    token_limit,
    top_logprobs,
)
from .openai_json import decode_body

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default of this route."""

MAX_PROMPTS = 256
"""Prompts in one request."""

MAX_PROMPT_IDS = 1_048_576
"""Ids in one prompt: more than any context, and few enough to be looked at while others wait."""

_UNSUPPORTED: dict[str, Sequence[Any]] = {"suffix": ("",)}


class CompletionFields(SharedFields, kw_only=True):
    """`prompt`: a text, a list of ids, or a list of either."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    suffix: Any = None
    best_of: int | None = None


_DECODER = msgspec.json.Decoder(CompletionFields)


def decode_completion(body: bytes) -> Ask:
    """Raises BadRequest with the field's path in `param`."""
    fields = decode_body(body, _DECODER)
    refuse_unsupported(fields, _UNSUPPORTED)
    check_stream_options(fields)
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise BadRequest("best_of: is not supported beyond n", param="best_of", code="unsupported_value")
    prompts = read_prompts(fields.prompt)
    echo = bool(fields.echo)
    max_tokens = token_limit("max_tokens", fields.max_tokens, low=0 if echo else 1)
    if max_tokens is None:
        max_tokens = DEFAULT_MAX_TOKENS
    num_top = top_logprobs("logprobs", fields.logprobs)
    first = generation_request(fields, prompts[0], max_tokens=max_tokens)
    first.echo = echo
    if num_top is not None:
        first.logprobs = num_top
        if echo:
            first.prompt_logprobs = num_top
    options = fields.stream_options
    form = Form(
        is_stream=bool(fields.stream),
        include_usage=bool(options and options.include_usage),
        with_token_ids=bool(fields.return_token_ids),
        with_logprobs=num_top is not None,
        num_choices=first.n,
        num_prompts=len(prompts),
        echo=echo,
    )
    return Ask(fields.model, [first, *(_with_prompt(first, prompt) for prompt in prompts[1:])], form)


def read_prompts(value: str | list[str | int | list[int]]) -> list[generation_pb2.Prompt]:
    """The four shapes of `prompt` as one list, in order. Raises BadRequest."""
    if isinstance(value, str):
        return [_text(value, "prompt")]
    if not value:
        raise BadRequest("prompt: must not be empty", param="prompt")
    if isinstance(value[0], int):
        ids = [item for item in value if isinstance(item, int)]
        if len(ids) < len(value):
            index = next(i for i, item in enumerate(value) if not isinstance(item, int))
            raise BadRequest(f"prompt[{index}]: expected a token id", param=f"prompt[{index}]")
        return [_ids(ids, "prompt")]
    if len(value) > MAX_PROMPTS:
        raise BadRequest(f"prompt: more than {MAX_PROMPTS} prompts", param="prompt")
    return [_one(item, f"prompt[{index}]") for index, item in enumerate(value)]


def _one(item: str | int | list[int], path: str) -> generation_pb2.Prompt:
    if isinstance(item, str):
        return _text(item, path)
    if isinstance(item, list):
        return _ids(item, path)
    raise BadRequest(f"{path}: expected a text or a list of token ids", param=path)


def _text(text: str, path: str) -> generation_pb2.Prompt:
    if not text:
        raise BadRequest(f"{path}: must not be empty", param=path)
    return generation_pb2.Prompt(text=text)


def _ids(ids: list[int], path: str) -> generation_pb2.Prompt:
    if not ids:
        raise BadRequest(f"{path}: must not be empty", param=path)
    if len(ids) > MAX_PROMPT_IDS:
        raise BadRequest(f"{path}: more than {MAX_PROMPT_IDS} ids", param=path, code="context_length_exceeded")
    return generation_pb2.Prompt(ids=generation_pb2.TokenIds(token_ids=token_ids(ids, path)))


def _with_prompt(
    request: generation_pb2.GenerationRequest, prompt: generation_pb2.Prompt
) -> generation_pb2.GenerationRequest:
    copy = generation_pb2.GenerationRequest()
    copy.CopyFrom(request)
    copy.prompt.CopyFrom(prompt)
    return copy
