"""Completions in OpenAI's legacy shape: one choice's outputs to chunks, and its chunks to the whole choice.

A whole choice is nothing but its chunks joined, so that a stream and a body cannot differ.
"""

from __future__ import annotations

from typing import Any

from shoal.proto.v1 import generation_pb2

from .openai_ask import Form
from .openai_logprobs import LegacyLogprobs, join_lists
from .openai_tally import finish_word

OBJECT = CHUNK_OBJECT = "text_completion"
ID_PREFIX = "cmpl-"

_TEXT_KINDS = (generation_pb2.DELTA_KIND_TEXT, generation_pb2.DELTA_KIND_REASONING)


class CompletionChoice:
    """One choice of a completion. With `echo` its first chunk opens with the prompt."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._logprobs = LegacyLogprobs()
        self._is_first = True

    def chunk(self, output: generation_pb2.Output, prompt: generation_pb2.PromptOutput | None) -> dict[str, Any] | None:
        """The fields of a chunk beside `index`; None when the output shows the client nothing."""
        text = "".join(delta.text for delta in output.deltas if delta.kind in _TEXT_KINDS)
        pieces = []
        opens_with_prompt = self._is_first and prompt is not None
        if opens_with_prompt and self._form.echo and prompt is not None:
            text = prompt.text + text
            if prompt.logprobs:
                pieces.append(self._logprobs.prompt(prompt.logprobs, prompt.text))
        if output.logprobs:
            pieces.append(self._logprobs.generated(output.logprobs))
        finish_reason = finish_word(output.finish) if output.HasField("finish") else None
        has_ids = self._form.with_token_ids and len(output.token_ids) > 0
        has_logprobs = self._form.with_logprobs and bool(pieces)
        if not (text or finish_reason or has_ids or has_logprobs):
            return None
        self._is_first = False
        fields: dict[str, Any] = {
            "text": text,
            "logprobs": join_lists(pieces) if has_logprobs else None,
            "finish_reason": finish_reason,
        }
        if self._form.with_token_ids:
            fields["token_ids"] = list(output.token_ids)
            if opens_with_prompt and self._form.num_prompts > 1 and prompt is not None:
                fields["prompt_token_ids"] = list(prompt.token_ids)
        return fields


def whole_choice(index: int, chunks: list[dict[str, Any]], form: Form) -> dict[str, Any]:
    """The choice of a body from its chunks."""
    choice: dict[str, Any] = {"index": index, "text": "".join(chunk["text"] for chunk in chunks), "logprobs": None}
    if form.with_logprobs:
        choice["logprobs"] = join_lists(chunk["logprobs"] for chunk in chunks if chunk["logprobs"])
    choice["finish_reason"] = chunks[-1]["finish_reason"] if chunks else None
    if form.with_token_ids:
        choice["token_ids"] = [token_id for chunk in chunks for token_id in chunk["token_ids"]]
        for chunk in chunks:
            if "prompt_token_ids" in chunk:
                choice["prompt_token_ids"] = chunk["prompt_token_ids"]
    return choice
