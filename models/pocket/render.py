"""Writes conversations in the chat format of the family, cut into pieces with and without loss.

The text equals ``chat_template.jinja`` (a test compares them); this form is faster and knows which
pieces the assistant wrote.
"""

from __future__ import annotations

import json
from typing import Any

from models.pocket.curriculum import Conversation

TOOLS_HEAD = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
TOOLS_TAIL = (
    "\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:"
    "\n\n<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n"
    "</parameter>\n<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can "
    "span\nmultiple lines\n</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n- Function "
    "calls MUST follow the specified format: an inner <function=...></function> block must be nested "
    "within <tool_call></tool_call> XML tags\n- Required parameters MUST be specified\n- You may provide "
    "optional reasoning for your function call in natural language BEFORE the function call, but NOT "
    "after\n- If there is no function call available, answer the question like normal with your current "
    "knowledge and do not tell the user about function calls\n</IMPORTANT>"
)

Piece = tuple[str, bool]


def _call(call: dict[str, Any]) -> str:
    f = call["function"]
    lines = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in f["arguments"].items())
    return f"<tool_call>\n<function={f['name']}>\n{lines}</function>\n</tool_call>"


def pieces(conversation: Conversation) -> list[Piece]:
    """The conversation as (text, written by the assistant) in order."""
    messages = conversation.messages
    out: list[Piece] = []
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if conversation.tools:
        tools = "".join("\n" + json.dumps(t, ensure_ascii=False) for t in conversation.tools)
        tail = "\n\n" + system if system else ""
        out.append((f"<|im_start|>system\n{TOOLS_HEAD}{tools}{TOOLS_TAIL}{tail}<|im_end|>\n", False))
    elif system:
        out.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    last_query = max(i for i, m in enumerate(messages) if m["role"] == "user")
    for i, m in enumerate(messages):
        role = m["role"]
        if role == "user":
            out.append((f"<|im_start|>user\n{m['content']}<|im_end|>\n", False))
        elif role == "tool":
            out.append((f"<|im_start|>user\n<tool_response>\n{m['content']}\n</tool_response><|im_end|>\n", False))
        elif role == "assistant":
            content = m.get("content") or "".join(map(_call, m.get("tool_calls", [])))
            if i < last_query:
                out.append(("<|im_start|>assistant\n", False))
            elif conversation.thinking:
                out.append(("<|im_start|>assistant\n<think>\n", False))
                content = f"{m['reasoning_content']}\n</think>\n\n{content}"
            else:
                out.append(("<|im_start|>assistant\n<think>\n\n</think>\n\n", False))
            out.append((content + "<|im_end|>", True))
            out.append(("\n", False))
    return out
