"""A request's prompt, in any of its three forms, to the ids that the model reads.

Messages and tools arrive as the client's own JSON. Their structure was checked at the edge; what cannot be rendered is refused here
with the path of the field, never guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from .errors import ContextTooLong
from .text_errors import ContentNotSupported, MessagesInvalid, TemplateFailed, TokenIdInvalid
from .tokenizer import Tokenizer
from .wire import Conversation, IdsPrompt, Prompt, TextPrompt

if TYPE_CHECKING:  # with it comes the template language, for conversations only
    from .chat_template import ChatTemplate, Rendered

MAX_MESSAGES = 100_000
"""Messages of one conversation; the body limit of the API holds fewer."""

MAX_CONTEXTS = 4
"""Text that has at least this many contexts' tokens is not encoded, not even to be counted."""

_MEDIA_KEYS = ("image", "image_url", "video", "video_url", "audio", "audio_url", "input_audio", "file", "input_image")


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """What the model reads, and what the answer's parser must know of it."""

    ids: list[int]
    source: str | Callable[[], str] = field(repr=False)
    """The prompt as text, or how to get it: for a prompt of ids it is seldom wanted and takes a while."""
    is_chat: bool
    """The answer is parsed for reasoning and tool calls."""
    starts_in_reasoning: bool = False
    """The prompt ends inside `<think>`: the answer begins with reasoning."""
    tools: list[dict[str, Any]] | None = field(default=None, repr=False)
    """The tools that the model was shown, in OpenAI's form."""

    @property
    def text(self) -> str:
        """The prompt as text, control strings included."""
        return self.source if isinstance(self.source, str) else self.source()

    @property
    def has_tools(self) -> bool:
        return bool(self.tools)


def build_prompt(
    prompt: Prompt, tokenizer: Tokenizer, template: ChatTemplate | None, *, context: int | None = None
) -> BuiltPrompt:
    """Encode a prompt. Given the model's `context` in tokens, text that is sure to be far beyond it is refused before it is
    encoded, since encoding megabytes takes seconds. What is a little too long comes out all the same: it can be counted.

    Raises MessagesInvalid, ContentNotSupported, TemplateFailed, TokenIdInvalid or ContextTooLong, all of them RequestInvalid
    with `param`.
    """
    if isinstance(prompt, IdsPrompt):
        return _build_from_ids(prompt.token_ids, tokenizer)
    if isinstance(prompt, TextPrompt):
        _check_length([prompt.text], tokenizer, context, "prompt", tokenizer.encode_raw)
        ids = tokenizer.encode_raw(prompt.text, add_special_tokens=True)
        return BuiltPrompt(ids, prompt.text, is_chat=False)
    if template is None:
        raise TemplateFailed("this model has no chat template; use completions")
    try:
        return _build_from_conversation(prompt, tokenizer, template, context)
    except RecursionError as error:
        raise MessagesInvalid("the conversation is nested too deeply", "messages") from error


def _check_length(
    texts: Iterable[str], tokenizer: Tokenizer, context: int | None, param: str, encode: Callable[[str], list[int]]
) -> None:
    if context is None:
        return
    bound = context * MAX_CONTEXTS
    fewest = 0
    for text in texts:
        fewest += tokenizer.fewest_tokens(text)
        # Much text is judged by its beginning: a tokenizer of few words makes nearly as many tokens as there are letters.
        beginning = bound + context
        if fewest <= bound and len(text) > 2 * beginning:
            fewest = max(fewest, len(encode(text[:beginning])))
        if fewest > bound:
            raise ContextTooLong(
                f"{param}: {fewest} tokens at least, far beyond this model's context of {context} tokens", param
            )


def _build_from_ids(token_ids: list[int], tokenizer: Tokenizer) -> BuiltPrompt:
    for position, token_id in enumerate(token_ids):
        if not 0 <= token_id < tokenizer.vocab_size:
            raise TokenIdInvalid(
                f"token id {token_id} is not below the vocabulary's {tokenizer.vocab_size}", f"prompt[{position}]"
            )
    ids = list(token_ids)
    return BuiltPrompt(ids, lambda: tokenizer.decode(ids), is_chat=False)


def _build_from_conversation(
    prompt: Conversation, tokenizer: Tokenizer, template: ChatTemplate, context: int | None
) -> BuiltPrompt:
    messages = [
        _normal_message(message, f"messages[{index}]")
        for index, message in enumerate(_decode_list(prompt.messages, "messages"))
    ]
    if len(messages) > MAX_MESSAGES:
        raise MessagesInvalid(f"more than {MAX_MESSAGES:,} messages", "messages")
    tools = None
    if prompt.tools and prompt.tool_choice != "none":
        tools = [_checked_tool(tool, f"tools[{i}]") for i, tool in enumerate(_decode_list(prompt.tools, "tools"))]
    rendered = template.render(
        messages,
        tools or None,
        _decode_variables(prompt.template_kwargs),
        add_generation_prompt=prompt.add_generation_prompt,
    )
    texts = (segment for segment in rendered.segments if isinstance(segment, str))
    _check_length(texts, tokenizer, context, "messages", tokenizer.encode_plain)
    return BuiltPrompt(
        tokenizer.encode_segments(rendered.segments),
        rendered.text,
        is_chat=True,
        starts_in_reasoning=_ends_in_reasoning(rendered),
        tools=tools or None,
    )


def _ends_in_reasoning(rendered: Rendered) -> bool:
    """Whether the last control token is `<think>`: a turn that goes on after it would have begun with another."""
    controls = [segment.text for segment in rendered.segments if not isinstance(segment, str)]
    return bool(controls) and controls[-1] == "<think>"


def _decode(source: bytes, param: str) -> Any:
    try:
        return msgspec.json.decode(source)
    except msgspec.DecodeError as error:
        raise MessagesInvalid(f"{param} is not JSON: {error}", param) from error
    except RecursionError as error:
        raise MessagesInvalid(f"{param} is nested too deeply", param) from error


def _decode_list(source: bytes, param: str) -> list[Any]:
    value = _decode(source, param)
    if value is None:
        return []
    if not isinstance(value, list):
        raise MessagesInvalid(f"{param} is not a list", param)
    return value


def _decode_variables(source: bytes) -> Mapping[str, Any]:
    if not source:
        return {}
    param = "chat_template_kwargs"
    value = _decode(source, param)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MessagesInvalid(f"{param} is not an object", param)
    from .chat_template import RESERVED_VARIABLES

    for name in value:
        if name in RESERVED_VARIABLES:
            raise MessagesInvalid(f"{name} cannot be set for the template", f"{param}.{name}")
    return value


def _checked_tool(tool: Any, param: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise MessagesInvalid("a tool is an object", param)
    return tool


def _normal_message(message: Any, param: str) -> dict[str, Any]:
    """One message as templates expect it: a known role name, arguments as mappings."""
    if not isinstance(message, dict):
        raise MessagesInvalid("a message is an object", param)
    role = message.get("role")
    if not isinstance(role, str):
        raise MessagesInvalid("a message has a role", f"{param}.role")
    normal = dict(message)
    if role == "developer":  # OpenAI's newer word for system
        normal["role"] = "system"
    if isinstance(normal.get("content"), list):
        normal["content"] = [
            _text_part(part, f"{param}.content[{index}]") for index, part in enumerate(normal["content"])
        ]
    calls = normal.get("tool_calls")
    if isinstance(calls, list):
        normal["tool_calls"] = [_normal_call(call, f"{param}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return normal


def _text_part(part: Any, param: str) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise MessagesInvalid("a content part is an object", param)
    kind = part.get("type", "text")
    if kind not in ("text", "input_text", "output_text") or any(key in part for key in _MEDIA_KEYS):
        found = kind if kind != "text" else next(key for key in _MEDIA_KEYS if key in part)
        raise ContentNotSupported(f"content of type {str(found)[:40]!r} is not supported yet; only text is", param)
    if not isinstance(part.get("text"), str):
        raise MessagesInvalid("a text part has text", f"{param}.text")
    return {"type": "text", "text": part["text"]}


def _normal_call(call: Any, param: str) -> dict[str, Any]:
    """A tool call whose arguments are a mapping; OpenAI's API has them as a JSON text."""
    if not isinstance(call, dict):
        raise MessagesInvalid("a tool call is an object", param)
    if "function" not in call:
        return _with_parsed_arguments(call, param)
    if not isinstance(call["function"], dict):
        raise MessagesInvalid("a function is an object", f"{param}.function")
    return {**call, "function": _with_parsed_arguments(call["function"], f"{param}.function")}


def _with_parsed_arguments(function: dict[str, Any], param: str) -> dict[str, Any]:
    if not isinstance(function.get("name"), str):
        raise MessagesInvalid("a function call has a name", f"{param}.name")
    if "arguments" not in function:
        return function
    param = f"{param}.arguments"
    arguments = function["arguments"]
    if isinstance(arguments, str):
        arguments = _decode(arguments.encode("utf-8", errors="replace"), param) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise MessagesInvalid("arguments are not a JSON object", param)
    return {**function, "arguments": arguments}
