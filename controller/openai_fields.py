"""The fields that both completion routes share: their types, their ranges, and what they become for an engine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shoal.proto.v1 import generation_pb2

from .errors import BadRequest

MAX_CHOICES = 64
"""`n`; what an engine takes at most."""

MAX_TOKENS = 4_194_304
"""More than any context: a larger wish is a mistake of the client."""

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
"""Bounds what the engine's stop matcher holds back of a stream."""

MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
MAX_TOP_LOGPROBS = 20
MAX_TOKEN_ID = 2**32 - 1
"""What fits the wire; whether the model has the id is checked where the model is known."""

_TOKEN_ID_KEY = re.compile(r"[0-9]{1,10}")


class StreamOptions(msgspec.Struct):
    """`include_usage`: a last chunk with the usage and no choices."""

    include_usage: bool | None = None


class SharedFields(msgspec.Struct, kw_only=True):
    """null means absent everywhere, as clients send it."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None


def check_stream_options(fields: SharedFields) -> None:
    """As in OpenAI's API, options of a stream want a stream."""
    if fields.stream_options is not None and not fields.stream:
        raise BadRequest("stream_options: only with stream true", param="stream_options")


def generation_request(
    fields: SharedFields, prompt: generation_pb2.Prompt, *, max_tokens: int | None, max_tokens_param: str = "max_tokens"
) -> generation_pb2.GenerationRequest:
    """Everything but logprobs and echo. Raises BadRequest for the first value out of its range."""
    request = generation_pb2.GenerationRequest(
        model=fields.model,
        prompt=prompt,
        sampling=sampling(fields),
        n=_integer("n", fields.n, 1, MAX_CHOICES) or 1,
        min_tokens=_integer("min_tokens", fields.min_tokens, 0, MAX_TOKENS) or 0,
        stop=stops(fields.stop),
        stop_token_ids=token_ids(fields.stop_token_ids or (), "stop_token_ids", MAX_STOP_TOKEN_IDS),
        ignore_eos=bool(fields.ignore_eos),
    )
    if max_tokens is not None:
        request.max_tokens = max_tokens
        if request.min_tokens > max_tokens:
            raise BadRequest(f"min_tokens: is more than {max_tokens_param}", param="min_tokens")
    return request


def sampling(fields: SharedFields) -> generation_pb2.Sampling:
    """What is absent stays absent: the checkpoint's defaults are the engine's to fill in. Raises BadRequest."""
    seed = _integer("seed", fields.seed, -(2**63), 2**64 - 1)
    return generation_pb2.Sampling(
        temperature=_number("temperature", fields.temperature, 0.0, 2.0),
        top_p=_number("top_p", fields.top_p, 0.0, 1.0, above=True),
        top_k=_integer("top_k", fields.top_k, -1, 2**31 - 1),
        min_p=_number("min_p", fields.min_p, 0.0, 1.0),
        presence_penalty=_number("presence_penalty", fields.presence_penalty, -2.0, 2.0),
        frequency_penalty=_number("frequency_penalty", fields.frequency_penalty, -2.0, 2.0),
        repetition_penalty=_number("repetition_penalty", fields.repetition_penalty, 0.0, 100.0, above=True),
        seed=None if seed is None else seed % 2**64,
        logit_bias=logit_bias(fields.logit_bias or {}),
    )


def token_limit(name: str, value: int | None, *, low: int) -> int | None:
    """`max_tokens` under the name that the client used. Raises BadRequest."""
    return _integer(name, value, low, MAX_TOKENS)


def top_logprobs(name: str, value: int | None) -> int | None:
    """Number of alternatives a token. Raises BadRequest."""
    return _integer(name, value, 0, MAX_TOP_LOGPROBS)


def stops(value: str | list[str] | None) -> list[str]:
    """Stop strings as a list. Raises BadRequest."""
    if isinstance(value, str):
        found = [value]
        names = ["stop"]
    else:
        found = value or []
        names = [f"stop[{index}]" for index in range(len(found))]
    if len(found) > MAX_STOPS:
        raise BadRequest(f"stop: more than {MAX_STOPS} strings", param="stop")
    for name, text in zip(names, found, strict=True):
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise BadRequest(f"{name}: must have 1 to {MAX_STOP_CHARS} characters", param=name)
    return found


def token_ids(ids: Sequence[int], name: str, limit: int | None = None) -> Sequence[int]:
    """Ids that fit the wire. Raises BadRequest with the first that does not."""
    if limit is not None and len(ids) > limit:
        raise BadRequest(f"{name}: more than {limit} ids", param=name)
    # Two passes in C are quicker than one in Python, and the slow one runs only to name the culprit.
    if ids and not (min(ids) >= 0 and max(ids) <= MAX_TOKEN_ID):
        index = next(i for i, token_id in enumerate(ids) if not 0 <= token_id <= MAX_TOKEN_ID)
        raise BadRequest(f"{name}[{index}]: is not a token id", param=f"{name}[{index}]")
    return ids


def logit_bias(biases: Mapping[str, float]) -> dict[int, float]:
    """Token ids to biases. Raises BadRequest."""
    if len(biases) > MAX_LOGIT_BIASES:
        raise BadRequest(f"logit_bias: more than {MAX_LOGIT_BIASES} entries", param="logit_bias")
    for key, bias in biases.items():
        if not _TOKEN_ID_KEY.fullmatch(key) or int(key) > MAX_TOKEN_ID:
            raise BadRequest("logit_bias: keys are token ids", param="logit_bias")
        if not -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS:
            raise BadRequest(
                f"logit_bias: the bias of {key} is not within plus and minus {MAX_LOGIT_BIAS:g}", param="logit_bias"
            )
    return {int(key): bias for key, bias in biases.items()}


def refuse_unsupported(fields: msgspec.Struct, neutral: Mapping[str, Sequence[Any]]) -> None:
    """Refuses a known field that is not supported yet, unless its value asks for nothing. null never does."""
    for name, values in neutral.items():
        value = getattr(fields, name)
        if value is not None and value not in values:
            raise BadRequest(f"{name}: this value is not supported yet", param=name, code="unsupported_value")


def _integer(name: str, value: int | None, low: int, high: int) -> int | None:
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name}: must be at least {low} and at most {high}", param=name)
    return value


def _number(name: str, value: float | None, low: float, high: float, *, above: bool = False) -> float | None:
    # NaN and infinities cannot be written in JSON, so comparisons are enough.
    if value is None or ((low < value if above else low <= value) and value <= high):
        return value
    raise BadRequest(f"{name}: must be {'above' if above else 'at least'} {low:g} and at most {high:g}", param=name)
