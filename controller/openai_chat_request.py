"""POST /v1/chat/completions: the body to one generation request."""

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
    token_limit,
    top_logprobs,
)
from .openai_json import decode_body, decode_value
from .openai_messages import check_messages, check_tools

_UNSUPPORTED: dict[str, Sequence[Any]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("auto", "none"),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Known fields of OpenAI's API and the values of each that ask for nothing."""


ABSENT = msgspec.Raw(b"null")
"""A raw field that the client did not send; null is the same."""


class ChatFields(SharedFields, kw_only=True):
    """Messages, tools and template variables stay the client's own bytes."""

    messages: msgspec.Raw
    tools: msgspec.Raw = ABSENT
    chat_template_kwargs: msgspec.Raw = ABSENT
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    service_tier: Any = None
    store: Any = None
    tool_choice: Any = None
    verbosity: Any = None
    web_search_options: Any = None


_DECODER = msgspec.json.Decoder(ChatFields)
_OBJECT = msgspec.json.Decoder(dict[str, Any] | None)


def decode_chat(body: bytes) -> Ask:
    """Raises BadRequest with the field's path in `param`."""
    fields = decode_body(body, _DECODER)
    refuse_unsupported(fields, _UNSUPPORTED)
    check_stream_options(fields)
    prompt = conversation(fields.messages, fields.tools, fields.chat_template_kwargs)
    prompt.conversation.tool_choice = fields.tool_choice or ""
    name = "max_completion_tokens" if fields.max_completion_tokens is not None else "max_tokens"
    token_limit("max_tokens", fields.max_tokens, low=1)
    max_tokens = token_limit(name, getattr(fields, name), low=1)
    request = generation_request(fields, prompt, max_tokens=max_tokens, max_tokens_param=name)
    num_top = top_logprobs("top_logprobs", fields.top_logprobs)
    if fields.logprobs:
        request.logprobs = num_top or 0
    elif num_top:
        raise BadRequest("top_logprobs: only with logprobs true", param="top_logprobs")
    options = fields.stream_options
    form = Form(
        is_stream=bool(fields.stream),
        include_usage=bool(options and options.include_usage),
        with_token_ids=bool(fields.return_token_ids),
        with_logprobs=bool(fields.logprobs),
        num_choices=request.n,
    )
    return Ask(fields.model, [request], form)


def conversation(messages: msgspec.Raw, tools: msgspec.Raw, template_kwargs: msgspec.Raw) -> generation_pb2.Prompt:
    """Checked once; then the raw bytes travel. Raises BadRequest."""
    check_messages(messages)
    found = generation_pb2.Conversation(messages_json=bytes(messages))
    if check_tools(tools):
        found.tools_json = bytes(tools)
    if decode_value(template_kwargs, _OBJECT, "chat_template_kwargs"):
        found.template_kwargs_json = bytes(template_kwargs)
    return generation_pb2.Prompt(conversation=found)
