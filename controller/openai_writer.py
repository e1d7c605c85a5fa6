"""Writes an answer from the outputs of its prompts: as a stream of chunks, or as one body of the same chunks joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from shoal.proto.v1 import generation_pb2

from . import openai_chat, openai_completions
from .openai_ask import Ask, Form
from .openai_chat_request import decode_chat
from .openai_completions_request import decode_completion
from .openai_tally import Tally
from .sse import ChunkTemplate


class ChoiceWriter(Protocol):
    """One choice of an answer in one of the two shapes."""

    def chunk(
        self, output: generation_pb2.Output, prompt: generation_pb2.PromptOutput | None
    ) -> dict[str, Any] | None: ...


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between the two routes."""

    object: str
    chunk_object: str
    id_prefix: str
    decode: Callable[[bytes], Ask]
    make_choice: Callable[[Form], ChoiceWriter]
    whole_choice: Callable[[int, list[dict[str, Any]], Form], dict[str, Any]]


CHAT = Dialect(
    openai_chat.OBJECT,
    openai_chat.CHUNK_OBJECT,
    openai_chat.ID_PREFIX,
    decode_chat,
    openai_chat.ChatChoice,
    openai_chat.whole_choice,
)
COMPLETIONS = Dialect(
    openai_completions.OBJECT,
    openai_completions.CHUNK_OBJECT,
    openai_completions.ID_PREFIX,
    decode_completion,
    openai_completions.CompletionChoice,
    openai_completions.whole_choice,
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where an answer comes from."""

    node_id: str
    attempts: int


class AnswerWriter:
    """One answer. Either `events` is called for each flush, or `keep` for each and `body` at the end."""

    def __init__(self, dialect: Dialect, form: Form, *, request_id: str, model: str, created: int) -> None:
        self._dialect = dialect
        self._form = form
        self._head = {
            "id": dialect.id_prefix + request_id,
            "object": dialect.chunk_object if form.is_stream else dialect.object,
            "created": created,
            "model": model,
        }
        self._template = ChunkTemplate(self._head, form.num_choices_total, with_usage=form.include_usage)
        self._choices = [dialect.make_choice(form) for _ in range(form.num_choices_total)]
        self._kept: list[list[dict[str, Any]]] = [[] for _ in self._choices]
        self._prompts: list[generation_pb2.PromptOutput | None] = [None] * form.num_prompts
        self._held: dict[int, list[generation_pb2.Output]] = {}
        self._prompt_ids_due = form.with_token_ids and form.num_prompts == 1
        self._tally = Tally(form.num_choices_total)

    @property
    def is_complete(self) -> bool:
        """Whether every choice has ended."""
        return self._tally.is_complete

    def events(self, prompt_index: int, outputs: Sequence[generation_pb2.Output], source: Source) -> bytes:
        """The chunks of one flush, the last one of the answer included when it is complete."""
        events = []
        for output in self._with_prompt(prompt_index, outputs):
            index, fields = self._take(prompt_index, output)
            if fields is None:
                continue
            extra: dict[str, Any] = {}
            if self._prompt_ids_due and (prompt := self._prompts[0]) is not None:
                self._prompt_ids_due = False
                extra["prompt_token_ids"] = list(prompt.token_ids)
            if self.is_complete and not self._form.include_usage:
                extra["shoal"] = self._tally.shoal(source.node_id, source.attempts)
            events.append(self._template.choice(index, fields, extra))
        if self.is_complete and self._form.include_usage:
            shoal = self._tally.shoal(source.node_id, source.attempts)
            events.append(self._template.last({"usage": self._tally.usage(), "shoal": shoal}))
        return b"".join(events)

    def keep(self, prompt_index: int, outputs: Sequence[generation_pb2.Output]) -> None:
        """Remember what `body` will hold."""
        for output in self._with_prompt(prompt_index, outputs):
            index, fields = self._take(prompt_index, output)
            if fields is not None:
                self._kept[index].append(fields)

    def body(self, source: Source) -> bytes:
        """The whole answer as JSON."""
        choices = [self._dialect.whole_choice(i, chunks, self._form) for i, chunks in enumerate(self._kept)]
        answer: dict[str, Any] = {**self._head, "choices": choices, "usage": self._tally.usage()}
        if self._prompt_ids_due and (prompt := self._prompts[0]) is not None:
            answer["prompt_token_ids"] = list(prompt.token_ids)
        answer["shoal"] = self._tally.shoal(source.node_id, source.attempts)
        return msgspec.json.encode(answer)

    def _with_prompt(
        self, prompt_index: int, outputs: Sequence[generation_pb2.Output]
    ) -> Sequence[generation_pb2.Output]:
        """The outputs that can be written now. The prompt comes with choice 0, and the others may be quicker: where they
        are to open with it, they wait for it."""
        if self._prompts[prompt_index] is not None:
            return outputs
        for output in outputs:
            if output.HasField("prompt"):
                self._prompts[prompt_index] = output.prompt
        if not self._form.opens_with_prompt:
            return outputs
        held = self._held.setdefault(prompt_index, [])
        held += outputs
        return self._held.pop(prompt_index) if self._prompts[prompt_index] is not None else ()

    def _take(self, prompt_index: int, output: generation_pb2.Output) -> tuple[int, dict[str, Any] | None]:
        index = prompt_index * self._form.num_choices + output.choice
        fields = self._choices[index].chunk(output, self._prompts[prompt_index])
        if output.HasField("finish"):
            self._tally.add(prompt_index, output.choice, output.finish)
        return index, fields
