"""The checkpoint's own chat template: messages to text, and to text with the control tokens told apart.

The template decides how a conversation reads; nothing of it is written here. What this module adds is the certainty that
a control token in the result is one that the template wrote (`control_marks`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from .control_marks import MARKED_NAME, Marks, mark_template, mark_texts, pick_marks, texts_of
from .template_sandbox import clock_at, compile_template, make_environment, run_template
from .text_errors import TemplateFailed, TemplateInvalid
from .tokenizer import ControlToken, Tokenizer

MAX_TEMPLATE_CHARS = 1024 * 1024
"""Published templates have 4 to 20 thousand characters."""

RESERVED_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "strftime_now"})
"""What a request's template variables may not replace."""

_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients send an earlier answer's reasoning; templates read the first, some the second."""

_MAX_MARKED_VERSIONS = 4
_PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the model reads it. `segments` spell `text`; plain text holds no control token."""

    text: str
    segments: tuple[str | ControlToken, ...]


class ChatTemplate:
    """Compiled once; `render` may be called from several threads."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        """Raises TemplateInvalid where `source` does not compile."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateInvalid(f"the chat template is longer than {MAX_TEMPLATE_CHARS:,} characters")
        self.source = source
        self._tokenizer = tokenizer
        self._controls = tokenizer.control_pattern
        letters = sorted({text[0] for text in tokenizer.controls if text})
        self._first_letters = re.compile("|".join(map(re.escape, letters)) or "(?!)")
        self._environment = make_environment()
        try:
            self._template = compile_template(self._environment, self._environment.parse(source))
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateInvalid(f"the chat template does not compile: {error}") from error
        self._marked = lru_cache(maxsize=_MAX_MARKED_VERSIONS)(self._compile_marked)
        self._builds_controls_from_pieces = self._probe()

    @classmethod
    def load(cls, directory: str | Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of this checkpoint, None where it has none. Raises TemplateInvalid."""
        source = find_template(Path(directory), tokenizer.config)
        return None if source is None else cls(source, tokenizer)

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
    ) -> Rendered:
        """Render JSON values (`dict`, `list`, `str`, numbers, booleans, None).

        Raises TemplateFailed where the template refuses or fails, and where it handles text so that its control strings
        cannot be told from the conversation's; MessagesInvalid where no mark is free.
        """
        clock = clock_at(now or datetime.now().astimezone())

        def context(conversation: tuple[Any, Any, Any]) -> dict[str, Any]:
            listed, offered, given = conversation
            return {
                **self._tokenizer.named_tokens,
                **given,
                "messages": listed,
                "tools": offered,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                "strftime_now": clock,
            }

        conversation = ([_with_reasoning_names(message) for message in messages], tools, dict(variables or {}))
        plain_context = context(conversation)
        text = run_template(self._template, plain_context)
        marks = pick_marks(texts_of(list(conversation)))
        segments: list[str | ControlToken] | None = None
        if not self._builds_controls_from_pieces:
            segments = self._by_template_marks(text, plain_context, marks)
        if segments is None:
            marked = mark_texts(list(conversation), self._first_letters, marks.begin)
            segments = self._by_text_marks(text, context(tuple(marked)), marks)
        if segments is None:
            raise TemplateFailed(
                "the chat template changes the control strings that a message spells; cannot tell them apart"
            )
        return Rendered(text, tuple(segments))

    def _by_template_marks(
        self, text: str, variables: Mapping[str, Any], marks: Marks
    ) -> list[str | ControlToken] | None:
        """First way; None where the marks changed more than themselves."""
        framed = {
            MARKED_NAME.format(name): marks.frame(value, self._controls)
            for name in self._tokenizer.named_tokens
            if isinstance(value := variables.get(name), str) and value == self._tokenizer.named_tokens[name]
        }
        kept = {
            MARKED_NAME.format(name): variables.get(name)
            for name in self._tokenizer.named_tokens
            if MARKED_NAME.format(name) not in framed
        }
        try:
            marked = run_template(self._marked(marks), {**variables, **framed, **kept})
        except TemplateFailed:
            return None
        if marks.strip(marked) != text:
            return None
        parts = marks.split(marked, self._controls)
        if parts is None:
            return None
        return self._segments(parts)

    def _by_text_marks(self, text: str, variables: Mapping[str, Any], marks: Marks) -> list[str | ControlToken] | None:
        """Second way; None where the marks changed more than themselves."""
        try:
            marked = run_template(self._template, variables)
        except TemplateFailed:
            return None
        if marks.strip(marked) != text:
            return None
        parts = re.split(f"({self._controls.pattern})", marked)
        return self._segments([marks.strip(part) for part in parts])

    def _segments(self, parts: list[str]) -> list[str | ControlToken]:
        return [
            self._tokenizer.controls[part] if index % 2 else part
            for index, part in enumerate(parts)
            if index % 2 or part
        ]

    def _compile_marked(self, marks: Marks) -> jinja2.Template:
        tree = mark_template(self._environment.parse(self.source), self._controls, marks, self._tokenizer.named_tokens)
        return compile_template(self._environment, tree)

    def _probe(self) -> bool:
        """Whether a harmless conversation shows control strings that stand whole in no constant of the template."""
        for messages in _PROBES:
            variables = {
                **self._tokenizer.named_tokens,
                "messages": messages,
                "tools": None,
                "documents": None,
                "add_generation_prompt": True,
                "strftime_now": clock_at(datetime(2000, 1, 1)),
            }
            try:
                text = run_template(self._template, variables)
            except TemplateFailed:
                continue  # a template may insist on more, or on less
            segments = self._by_template_marks(text, variables, pick_marks([]))
            if segments is not None and any(isinstance(s, str) and self._controls.search(s) for s in segments):
                return True
        return False


def _with_reasoning_names(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[name] for name in _REASONING_NAMES if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def find_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Source of the default template: chat_template.jinja, then tokenizer_config.json, then chat_template.json.

    Raises TemplateInvalid where one is there and cannot be read.
    """
    path = directory / "chat_template.jinja"
    if path.is_file():
        return _read_text(path)
    value = tokenizer_config.get("chat_template")
    file = "tokenizer_config.json"
    path = directory / "chat_template.json"
    if value is None and path.is_file():
        file = path.name
        try:
            holder = msgspec.json.decode(_read_text(path))
        except (msgspec.DecodeError, RecursionError) as error:
            raise TemplateInvalid(f"is not JSON: {error}", file=file) from error
        value = holder.get("chat_template") if isinstance(holder, dict) else holder
    if value is None or isinstance(value, str):
        return value
    return _default_of(value, file)


def _default_of(value: Any, file: str) -> str:
    """The template named `default` of a list of `{name, template}` (or a mapping), else the only one."""
    try:
        named = dict(value) if isinstance(value, dict) else {item["name"]: item["template"] for item in value}
    except (TypeError, KeyError) as error:
        raise TemplateInvalid("`chat_template` is neither text nor a list of named templates", file=file) from error
    source = named.get("default") or (next(iter(named.values())) if len(named) == 1 else None)
    if not isinstance(source, str):
        raise TemplateInvalid("none of the named chat templates is called `default`", file=file)
    return source


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > 4 * MAX_TEMPLATE_CHARS:
            raise TemplateInvalid(f"is longer than {4 * MAX_TEMPLATE_CHARS:,} bytes", file=path.name)
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateInvalid(f"cannot be read: {error}", file=path.name) from error
