"""Logprobs in OpenAI's two shapes. Natural logarithms; a token that is not UTF-8 by itself is named `bytes:\\xNN`."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Sequence
from typing import Any

from shoal.proto.v1 import generation_pb2

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write."""


def token_name(token: bytes) -> str:
    """The token's text, or its bytes where they are not text."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def finite(logprob: float) -> float:
    """What JSON can write."""
    return logprob if math.isfinite(logprob) else LOWEST


def chat_entries(logprobs: Iterable[generation_pb2.TokenLogprob]) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat answer."""
    return [
        {
            "token": token_name(entry.token),
            "logprob": finite(entry.logprob),
            "bytes": list(entry.token),
            "top_logprobs": [
                {"token": token_name(top.token), "logprob": finite(top.logprob), "bytes": list(top.token)}
                for top in entry.top
            ],
        }
        for entry in logprobs
    ]


class LegacyLogprobs:
    """Writes the four parallel lists of the completions route for one choice, over as many pieces as come.

    `text_offset` counts characters of the choice's text, a prompt that is echoed included.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def prompt(self, logprobs: Sequence[generation_pb2.TokenLogprob], text: str) -> dict[str, list[Any]]:
        """The echoed prompt, which reads `text`; control tokens are part of it."""
        lists = self._lists(logprobs, is_prompt=True)
        self._decoder.reset()
        self._num_chars = len(text)
        return lists

    def generated(self, logprobs: Sequence[generation_pb2.TokenLogprob]) -> dict[str, list[Any]]:
        """The next generated tokens."""
        return self._lists(logprobs, is_prompt=False)

    def _lists(self, logprobs: Sequence[generation_pb2.TokenLogprob], *, is_prompt: bool) -> dict[str, list[Any]]:
        lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in logprobs:
            lists["tokens"].append(token_name(entry.token))
            lists["text_offset"].append(self._num_chars)
            if entry.HasField("logprob"):
                lists["token_logprobs"].append(finite(entry.logprob))
                lists["top_logprobs"].append(_alternatives(entry))
            else:
                lists["token_logprobs"].append(None)
                lists["top_logprobs"].append(None)
            # Generated control tokens give no text; the engine names them by their spelling.
            if is_prompt or not (entry.token.startswith(b"<|") and entry.token.endswith(b"|>")):
                self._num_chars += len(self._decoder.decode(entry.token))
        return lists


def join_lists(pieces: Iterable[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """The pieces of one choice as one."""
    joined: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for piece in pieces:
        for name, values in piece.items():
            joined[name] += values
    return joined


def _alternatives(entry: generation_pb2.TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the chosen one. Of two tokens of one name the likelier stays."""
    found: dict[str, float] = {}
    for top in entry.top:
        found.setdefault(token_name(top.token), finite(top.logprob))
    found.setdefault(token_name(entry.token), finite(entry.logprob))
    return found
