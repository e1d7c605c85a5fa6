"""A request as it came over the wire -> one that the engine can run, or the reason why not.

All that is slow about a request and needs no model happens here: rendering, tokenising, checking. It touches nothing of
the engine, so that it may run in another thread than the steps.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import ContextTooLong
from .generation_defaults import GenerationDefaults
from .parser import AnswerParser
from .prompt import BuiltPrompt
from .refusals import FieldInvalid
from .sampling_params import SamplingParams, resolve_sampling
from .tokenizer import Tokenizer
from .wire import Prompt, Request

MAX_CHOICES = 64
"""`n`: each choice takes a place in the queue and, in its turn, a slot."""

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 1024
MAX_PROMPT_LOGPROBS = 250_000
"""Entries of a prompt's logprobs, alternatives included: they travel in one frame."""

SEED_BITS = 63
"""Of the seeds that the engine draws; what a client gives counts modulo 2^64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """Everything resolved and checked. Instants are seconds of the engine's clock."""

    request_id: str
    attempt: int
    num_choices: int
    prompt_ids: Sequence[int]
    prompt_text: str
    """For `PromptOutput.text`; empty unless echo was asked for."""
    is_chat: bool
    params: SamplingParams
    max_new_tokens: int
    min_tokens: int
    stop_ids: frozenset[int]
    """Ids that end an answer: the checkpoint's (unless ignored) and the request's."""
    logprobs: int | None
    prompt_logprobs: int | None
    arrived_at: float
    deadline_at: float | None
    parsers: Sequence[AnswerParser]
    """A fresh one for each choice."""

    @property
    def key(self) -> tuple[str, int]:
        """Names the request among those of the engine."""
        return self.request_id, self.attempt


@dataclass(frozen=True, slots=True)
class Intake:
    """What of the checkpoint a prompt meets before the model. Immutable, so threads may share it."""

    tokenizer: Tokenizer
    build: Callable[[Prompt], BuiltPrompt]
    defaults: GenerationDefaults
    max_model_len: int
    head_rows: int
    """Rows of the head; ids that the tokenizer does not know are below it all the same."""

    def token_ids(self, prompt: Prompt) -> list[int]:
        """The ids that a request with this prompt would have. Raises RequestInvalid."""
        return list(self.build(prompt).ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of ids, control tokens included. Raises RequestInvalid for an id that the tokenizer does not know."""
        for position, token_id in enumerate(token_ids):
            if not 0 <= token_id < self.tokenizer.vocab_size:
                raise FieldInvalid(f"tokens[{position}]", f"id {token_id} is not below {self.tokenizer.vocab_size}")
        return self.tokenizer.decode(token_ids)

    def prepare(self, request: Request, arrived_at: float) -> PreparedRequest:
        """Raises RequestInvalid, whose `param` is the path of the field."""
        _check_ranges(request)
        built = self.build(request.prompt)
        stop_ids = frozenset((*request.stop_token_ids, *(() if request.ignore_eos else self.defaults.stop_ids)))
        if any(token_id >= self.head_rows for token_id in stop_ids):
            raise FieldInvalid("stop_token_ids", f"ids must be below {self.head_rows}")
        if request.prompt_logprobs is not None and len(built.ids) * (1 + request.prompt_logprobs) > MAX_PROMPT_LOGPROBS:
            raise FieldInvalid("prompt_logprobs", f"more than {MAX_PROMPT_LOGPROBS} entries for this prompt")
        params = resolve_sampling(
            request.sampling,
            self.defaults,
            vocab_size=self.tokenizer.vocab_size,
            draw_seed=lambda: secrets.randbits(SEED_BITS),
        )

        return PreparedRequest(
            request_id=request.request_id,
            attempt=request.attempt,
            num_choices=request.n,
            prompt_ids=built.ids,
            prompt_text=built.text if request.echo else "",
            is_chat=built.is_chat,
            params=params,
            max_new_tokens=self._max_new_tokens(request, len(built.ids), "messages" if built.is_chat else "prompt"),
            min_tokens=request.min_tokens,
            stop_ids=stop_ids,
            logprobs=request.logprobs,
            prompt_logprobs=request.prompt_logprobs,
            arrived_at=arrived_at,
            deadline_at=None if request.deadline_ms is None else arrived_at + request.deadline_ms / 1000,
            parsers=[self._parser(request, built, stop_ids, choice) for choice in range(request.n)],
        )

    def _parser(self, request: Request, built: BuiltPrompt, stop_ids: frozenset[int], choice: int) -> AnswerParser:
        return AnswerParser(
            self.tokenizer,
            mode="chat" if built.is_chat else "raw",
            starts_in_reasoning=built.starts_in_reasoning,
            tools=built.tools,
            stop=request.stop,
            stop_ids=sorted(stop_ids),
            min_tokens=request.min_tokens,
            call_id_seed=f"{request.request_id}/{choice}",
        )

    def _max_new_tokens(self, request: Request, num_prompt_tokens: int, prompt_param: str) -> int:
        if num_prompt_tokens == 0:
            raise FieldInvalid(prompt_param, "has no tokens; at least one is needed")
        room = self.max_model_len - num_prompt_tokens
        if room < (0 if request.max_tokens == 0 else 1):
            raise ContextTooLong(
                f"{prompt_param}: {num_prompt_tokens} tokens, but this model's context is {self.max_model_len} tokens, "
                "prompt and answer together",
                prompt_param,
            )
        if request.max_tokens is None:
            return room
        if request.max_tokens > room:
            raise ContextTooLong(
                f"max_tokens: {request.max_tokens} tokens after a prompt of {num_prompt_tokens} are more than this "
                f"model's context of {self.max_model_len} tokens; at most {room} are left",
                "max_tokens",
            )
        return request.max_tokens


def _check_ranges(request: Request) -> None:
    """The fields that stand for themselves. The edge checks them too, and speaks its dialect; this is the last word."""
    _within("n", request.n, 1, MAX_CHOICES)
    _within("logprobs", request.logprobs, 0, MAX_TOP_LOGPROBS)
    _within("prompt_logprobs", request.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
    _within("max_tokens", request.max_tokens, 0, None)
    _within("min_tokens", request.min_tokens, 0, request.max_tokens)
    if request.max_tokens == 0 and request.prompt_logprobs is None and not request.echo:
        raise FieldInvalid("max_tokens", "0 is for echo and prompt logprobs only")
    if len(request.stop) > MAX_STOP_STRINGS:
        raise FieldInvalid("stop", f"more than {MAX_STOP_STRINGS} strings")
    for index, text in enumerate(request.stop):
        if not 0 < len(text) <= MAX_STOP_CHARS:
            raise FieldInvalid(f"stop[{index}]", f"must have 1 to {MAX_STOP_CHARS} characters")
    if len(request.stop_token_ids) > MAX_STOP_IDS:
        raise FieldInvalid("stop_token_ids", f"more than {MAX_STOP_IDS} ids")
    if any(token_id < 0 for token_id in request.stop_token_ids):
        raise FieldInvalid("stop_token_ids", "ids must not be negative")


def _within(name: str, value: int | None, low: int, high: int | None) -> None:
    if value is None:
        return
    if value < low:
        raise FieldInvalid(name, f"must be at least {low}")
    if high is not None and value > high:
        raise FieldInvalid(name, f"must be at most {high}")
