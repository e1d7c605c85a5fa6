"""Field rules of a GenerationRequest that came over gRPC. Pure; raises BadRequest whose `param` is the field's path.

The HTTP edge checks its own JSON; what needs the model (vocabulary, context) is checked by dispatch and the engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
from google.protobuf.message import Message

from shoal.proto.v1 import generation_pb2

from .errors import BadRequest, PayloadTooLarge

MAX_REQUEST_BYTES = 8 * 1024 * 1024
"""Largest message of a client, the same as over HTTP. The port itself takes larger ones: frames of the link."""

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
MAX_STOP_IDS = 256
MAX_BIASES = 1024
MAX_BIAS = 100.0
MAX_TOKENS = 2**31 - 1
MAX_MODEL_NAME = 256

# name, low, high, low itself allowed
_RANGES: tuple[tuple[str, float, float, bool], ...] = (
    ("temperature", 0.0, 2.0, True),
    ("top_p", 0.0, 1.0, False),
    ("min_p", 0.0, 1.0, True),
    ("presence_penalty", -2.0, 2.0, True),
    ("frequency_penalty", -2.0, 2.0, True),
    ("repetition_penalty", 0.0, 10.0, False),
)


def check_size(message: Message) -> None:
    """Raises PayloadTooLarge."""
    if message.ByteSize() > MAX_REQUEST_BYTES:
        raise PayloadTooLarge(f"the request is larger than {MAX_REQUEST_BYTES} bytes")


def check_request(request: generation_pb2.GenerationRequest) -> None:
    """Every rule that needs nothing but the request."""
    check_model_name(request.model)
    check_prompt(request.prompt)
    _check_sampling(request.sampling)
    if request.HasField("max_tokens"):
        _check_max_tokens(request)
    if len(request.stop) > MAX_STOPS:
        raise BadRequest(f"more than {MAX_STOPS} stop strings", param="stop")
    for index, stop in enumerate(request.stop):
        if not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            raise BadRequest(f"must be 1 to {MAX_STOP_CHARACTERS} characters", param=f"stop[{index}]")
    if len(request.stop_token_ids) > MAX_STOP_IDS:
        raise BadRequest(f"more than {MAX_STOP_IDS} ids", param="stop_token_ids")
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(request, name) > MAX_LOGPROBS:
            raise BadRequest(f"must be at most {MAX_LOGPROBS}", param=name)


def check_model_name(model: str) -> None:
    """Present, and no essay."""
    if not model:
        raise BadRequest("model is missing", param="model")
    if len(model) > MAX_MODEL_NAME:
        raise BadRequest(f"model is longer than {MAX_MODEL_NAME} characters", param="model")


def check_prompt(prompt: generation_pb2.Prompt) -> None:
    """One alternative is set and well formed; what messages may hold is for the engine's template to say."""
    match prompt.WhichOneof("prompt"):
        case "conversation":
            conversation = prompt.conversation
            messages = _json("prompt.conversation.messages_json", conversation.messages_json, list)
            if not messages:
                raise BadRequest("there are no messages", param="prompt.conversation.messages_json")
            for index, message in enumerate(messages):
                if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                    param = f"prompt.conversation.messages_json[{index}]"
                    raise BadRequest("must be an object with a role", param=param)
            if conversation.tools_json:
                _json("prompt.conversation.tools_json", conversation.tools_json, list)
            if conversation.template_kwargs_json:
                _json("prompt.conversation.template_kwargs_json", conversation.template_kwargs_json, dict)
            if conversation.tool_choice not in ("", "auto", "none"):
                raise BadRequest("must be auto or none", param="prompt.conversation.tool_choice")
        case "text":
            if not prompt.text:
                raise BadRequest("the prompt is empty", param="prompt.text")
        case "ids":
            if not prompt.ids.token_ids:
                raise BadRequest("there are no ids", param="prompt.ids.token_ids")
        case _:
            raise BadRequest("a conversation, a text or ids must be set", param="prompt")


def _json(name: str, raw: bytes, kind: type[list[object]] | type[dict[str, object]]) -> Iterable[object]:
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        # The library's message may quote what was sent; ours must not.
        raise BadRequest("is not valid JSON", param=name) from None
    if not isinstance(value, kind):
        raise BadRequest(f"must be a JSON {'array' if kind is list else 'object'}", param=name)
    return value


def _check_max_tokens(request: generation_pb2.GenerationRequest) -> None:
    low = 0 if request.echo or request.HasField("prompt_logprobs") else 1
    if not low <= request.max_tokens <= MAX_TOKENS:
        raise BadRequest(f"must be {low} to {MAX_TOKENS}", param="max_tokens")
    if request.min_tokens > request.max_tokens:
        raise BadRequest("must not be more than max_tokens", param="min_tokens")


def _check_sampling(sampling: generation_pb2.Sampling) -> None:
    for name, low, high, is_closed in _RANGES:
        if not sampling.HasField(name):
            continue
        value: float = getattr(sampling, name)
        if not math.isfinite(value) or value > high or value < low or (value == low and not is_closed):
            above = "at least" if is_closed else "above"
            raise BadRequest(f"must be {above} {low:g} and at most {high:g}", param=f"sampling.{name}")
    if sampling.HasField("top_k") and sampling.top_k < -1:
        raise BadRequest("must be -1, 0 (both: no limit) or more", param="sampling.top_k")
    if len(sampling.logit_bias) > MAX_BIASES:
        raise BadRequest(f"more than {MAX_BIASES} entries", param="sampling.logit_bias")
    if any(not abs(bias) <= MAX_BIAS for bias in sampling.logit_bias.values()):
        raise BadRequest(f"must be -{MAX_BIAS:g} to {MAX_BIAS:g}", param="sampling.logit_bias")
