"""Checks the messages and tools of a chat request once, so that their raw JSON can travel on as the client wrote it.

Roles, shapes and types are checked here; whether the checkpoint's template accepts the conversation is the template's say.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .errors import BadRequest
from .openai_json import decode_value

MAX_TOOLS = 128
"""As in OpenAI's API."""

MAX_MESSAGES = 10_000
MAX_PARTS = 10_000
"""Of one message. Both bound the time for which others wait."""

ROLES = ("system", "developer", "user", "assistant", "tool")

MEDIA_PARTS = frozenset(
    ("image_url", "image", "input_image", "input_audio", "audio", "audio_url", "video", "video_url", "input_video", "file", "input_file", "refusal")
)  # fmt: skip
"""Known kinds of content that no engine reads yet."""

# OpenAI allows letters, digits, _ and - up to 64; dots, colons and slashes are what tool servers add.
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


class Part(msgspec.Struct):
    """One part of a content list."""

    type: str
    text: str | None = None


class CalledFunction(msgspec.Struct):
    """`arguments` is JSON in a string; some clients send the object itself."""

    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(msgspec.Struct):
    """A call that the model made in an earlier turn."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None


class Message(msgspec.Struct):
    """Any role; what each role needs is checked by hand, for paths that a client understands."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    function_call: Any = None
    audio: Any = None


class ToolFunction(msgspec.Struct):
    """`parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """What the model may call."""

    type: str
    function: ToolFunction | None = None


_MESSAGES = msgspec.json.Decoder(list[Message])
_TOOLS = msgspec.json.Decoder(list[Tool] | None)


def check_messages(raw: msgspec.Raw) -> None:
    """Raises BadRequest with the path of the first thing that is wrong."""
    messages = decode_value(raw, _MESSAGES, "messages")
    if not messages:
        raise BadRequest("messages: must not be empty", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise BadRequest(f"messages: more than {MAX_MESSAGES}", param="messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")


def check_tools(raw: msgspec.Raw) -> bool:
    """Whether there are any. Raises BadRequest."""
    tools = decode_value(raw, _TOOLS, "tools") or []
    if len(tools) > MAX_TOOLS:
        raise BadRequest(f"tools: more than {MAX_TOOLS}", param="tools")
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if tool.type != "function":
            raise BadRequest(f"{path}.type: only function is supported", param=f"{path}.type")
        if tool.function is None:
            raise BadRequest(f"{path}.function: is required", param=f"{path}.function")
        if not _TOOL_NAME.fullmatch(tool.function.name):
            raise BadRequest(
                f"{path}.function.name: must have 1 to 128 letters, digits or _ . : / -", param=f"{path}.function.name"
            )
        if tool.function.strict:
            raise BadRequest(f"{path}.function.strict: is not supported yet", param=f"{path}.function.strict")
    return bool(tools)


def _check_message(message: Message, path: str) -> None:
    if message.role not in ROLES:
        raise BadRequest(f"{path}.role: must be one of {', '.join(ROLES)}", param=f"{path}.role")
    for name in ("function_call", "audio"):
        if getattr(message, name) is not None:
            raise BadRequest(f"{path}.{name}: is not supported", param=f"{path}.{name}")
    if message.tool_calls and message.role != "assistant":
        raise BadRequest(f"{path}.tool_calls: only in messages of the assistant", param=f"{path}.tool_calls")
    for index, call in enumerate(message.tool_calls or ()):
        _check_call(call, f"{path}.tool_calls[{index}]")
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise BadRequest(
            f"{path}.content: may be absent only beside tool_calls of the assistant", param=f"{path}.content"
        )
    if isinstance(message.content, list):
        if len(message.content) > MAX_PARTS:
            raise BadRequest(f"{path}.content: more than {MAX_PARTS} parts", param=f"{path}.content")
        for index, part in enumerate(message.content):
            _check_part(part, f"{path}.content[{index}]")


def _check_call(call: ToolCall, path: str) -> None:
    if call.type not in (None, "function"):
        raise BadRequest(f"{path}.type: only function is supported", param=f"{path}.type")
    if not call.function.name:
        raise BadRequest(f"{path}.function.name: must not be empty", param=f"{path}.function.name")


def _check_part(part: Part, path: str) -> None:
    if part.type in MEDIA_PARTS:
        raise BadRequest(
            f"{path}: parts of type {part.type} are not supported yet", param=path, code="unsupported_value"
        )
    if part.type != "text":
        raise BadRequest(f"{path}.type: is not known", param=f"{path}.type")
    if part.text is None:
        raise BadRequest(f"{path}.text: is required", param=f"{path}.text")
