"""Chat answers in OpenAI's shape: one choice's outputs to chunks, and its chunks to the whole choice.

A whole choice is nothing but its chunks joined, so that a stream and a body cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shoal.proto.v1 import generation_pb2

from .openai_ask import Form
from .openai_logprobs import chat_entries
from .openai_tally import finish_word

OBJECT = "chat.completion"
CHUNK_OBJECT = "chat.completion.chunk"
ID_PREFIX = "chatcmpl-"


class ChatChoice:
    """One choice of a chat answer."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._is_first = True

    def chunk(self, output: generation_pb2.Output, prompt: generation_pb2.PromptOutput | None) -> dict[str, Any] | None:
        """The fields of a chunk beside `index`; None when the output shows the client nothing."""
        delta = _delta(output.deltas)
        finish_reason = finish_word(output.finish) if output.HasField("finish") else None
        has_ids = self._form.with_token_ids and len(output.token_ids) > 0
        has_logprobs = self._form.with_logprobs and len(output.logprobs) > 0
        if not (delta or finish_reason or has_ids or has_logprobs):
            return None
        if self._is_first:
            self._is_first = False
            delta = {"role": "assistant", "content": "", **delta}
        fields: dict[str, Any] = {
            "delta": delta,
            "logprobs": {"content": chat_entries(output.logprobs), "refusal": None} if has_logprobs else None,
            "finish_reason": finish_reason,
        }
        if self._form.with_token_ids:
            fields["token_ids"] = list(output.token_ids)
        return fields


def whole_choice(index: int, chunks: list[dict[str, Any]], form: Form) -> dict[str, Any]:
    """The choice of a body from its chunks."""
    deltas = [chunk["delta"] for chunk in chunks]
    content = "".join(delta.get("content", "") for delta in deltas)
    reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
    calls = _whole_calls(entry for delta in deltas for entry in delta.get("tool_calls", ()))
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    choice: dict[str, Any] = {"index": index, "message": message, "logprobs": None}
    if form.with_logprobs:
        entries = [entry for chunk in chunks if chunk["logprobs"] for entry in chunk["logprobs"]["content"]]
        choice["logprobs"] = {"content": entries, "refusal": None}
    choice["finish_reason"] = chunks[-1]["finish_reason"] if chunks else None
    if form.with_token_ids:
        choice["token_ids"] = [token_id for chunk in chunks for token_id in chunk["token_ids"]]
    return choice


def _delta(deltas: Iterable[generation_pb2.Delta]) -> dict[str, Any]:
    """What one flush brings as one delta: pieces of one kind join, and so do pieces of one call."""
    found: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        if delta.kind == generation_pb2.DELTA_KIND_TEXT:
            found["content"] = found.get("content", "") + delta.text
        elif delta.kind == generation_pb2.DELTA_KIND_REASONING:
            found["reasoning_content"] = found.get("reasoning_content", "") + delta.text
        elif delta.kind == generation_pb2.DELTA_KIND_TOOL_CALL_START:
            function = {"name": delta.name, "arguments": delta.text}
            calls[delta.tool_index] = {
                "index": delta.tool_index, "id": delta.call_id, "type": "function", "function": function
            }  # fmt: skip
        elif delta.kind == generation_pb2.DELTA_KIND_TOOL_CALL_ARGUMENTS:
            call = calls.setdefault(delta.tool_index, {"index": delta.tool_index, "function": {"arguments": ""}})
            call["function"]["arguments"] += delta.text
    if calls:
        found["tool_calls"] = list(calls.values())
    return {name: value for name, value in found.items() if value}


def _whole_calls(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if "id" in entry:
            calls[entry["index"]] = {"id": entry["id"], "type": "function", "function": dict(entry["function"])}
        else:
            calls[entry["index"]]["function"]["arguments"] += entry["function"]["arguments"]
    return [calls[index] for index in sorted(calls)]
