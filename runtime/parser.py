"""Generated ids to the pieces of an answer: text, reasoning, tool calls. A pure function of the ids.

In **raw** mode everything is text; tokens flagged special give none. In **chat** mode four control tokens, known by their id
and not by how a text spells them, give the answer its parts:

    token            in content          in reasoning     in a call
    <think>          -> reasoning        text of it       text of it
    </think>         text                -> content       text of it
    <tool_call>      -> a call           text of it       the call ends, another begins
    </tool_call>     text                text of it       -> content

Without tools the last two are text everywhere. White space that belongs to the format is left out: one newline at the beginning
of reasoning, those at its end, up to two behind it, and what stands before, between and behind calls. A call that is none comes
out as text, as it was written.

Stop strings are looked for in content only, not in reasoning or arguments; text from the match on is never given out.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .detokenizer import Utf8Stream
from .stop_strings import StopStrings
from .tokenizer import Tokenizer
from .tool_arguments import parameter_types
from .tool_calls import ToolCallReader, make_call_id
from .wire import Delta, DeltaKind

THINK, THINK_END = "<think>", "</think>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"

Mode = Literal["raw", "chat"]


class _Part(enum.Enum):
    CONTENT = enum.auto()
    REASONING = enum.auto()
    CALL = enum.auto()


class AnswerParser:
    """One answer. `push` ids as they come, `finish` at the end; the deltas' texts, joined, are the answer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        mode: Mode,
        starts_in_reasoning: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        min_tokens: int = 0,
        call_id_seed: str = "",
    ) -> None:
        """`tools` are those that the model was shown (`BuiltPrompt.tools`). The first `min_tokens` ids match no stop string;
        that they are no stop ids is the sampler's affair."""
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._min_tokens = min_tokens
        self._call_id_seed = call_id_seed
        self._types = parameter_types(tools or ())
        names = [] if mode == "raw" else [THINK, THINK_END, *([TOOL_CALL, TOOL_CALL_END] if tools else [])]
        self._switches = {index: name for name in names if (index := tokenizer.control_id(name)) is not None}
        self._marks = self._stop_ids.union(self._switches, tokenizer.special_ids)
        """Ids that are no text."""
        self._holds_space = bool(tools) and mode == "chat"
        self._part = _Part.REASONING if starts_in_reasoning and mode == "chat" else _Part.CONTENT
        self._characters = Utf8Stream()
        self._stop = StopStrings(stop)
        self._num_droppable = 1 if self._part is _Part.REASONING else 0
        """Newlines that the format still allows at this place."""
        self._held = ""
        """White space at the end of what was seen of this part; whether it counts depends on what follows."""
        self._call: ToolCallReader | None = None
        self._num_calls = 0
        self._follows_call = False
        self._out: list[Delta] = []
        self._is_finished = False
        self.num_ids = 0
        """Ids taken so far; those behind the end are not."""
        self.stop_id_hit: int | None = None
        """The stop id that ended the answer; it gave no text."""

    @property
    def stop_hit(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stop.hit

    @property
    def has_ended(self) -> bool:
        """A stop id or a stop string was met; further ids are ignored."""
        return self._is_finished or self.stop_id_hit is not None or self._stop.hit is not None

    @property
    def saw_tool_call(self) -> bool:
        """At least one call was given out."""
        return self._num_calls > 0

    def push(self, ids: Sequence[int]) -> list[Delta]:
        """The pieces that these ids complete. Neighbours of one kind are joined."""
        for token_id in ids:
            if self.has_ended:
                break
            self.num_ids += 1
            if token_id in self._marks:
                self._take_mark(token_id)
                continue
            text = self._characters.push(self._tokenizer.token_bytes(token_id))
            if text:
                self._take(text)
        return self._drain()

    def finish(self) -> list[Delta]:
        """The end: what was held back. A second call gives nothing."""
        if not self._is_finished and self._stop.hit is None:
            self._take(self._characters.flush())
            if self._part is _Part.CALL:
                self._end_call()
            if self._part is _Part.CONTENT and self._stop.hit is None:
                self._hold_and_emit(self._stop.flush())
            self._emit_held()
        self._is_finished = True
        return self._drain()

    def _take_mark(self, token_id: int) -> None:
        if token_id in self._stop_ids:
            self.stop_id_hit = token_id
        elif (switch := self._switches.get(token_id)) is not None:
            self._take(self._characters.flush())
            if not self.has_ended:
                self._take_switch(switch)

    def _take(self, text: str) -> None:
        if not text:
            return
        if self._part is _Part.CONTENT:
            self._take_content(text)
        elif self._part is _Part.REASONING:
            self._take_reasoning(text)
        elif self._call is not None:
            self._read_call(self._call, text)

    def _take_switch(self, switch: str) -> None:
        match self._part, switch:
            case _Part.CONTENT, "<think>":
                self._hold_and_emit(self._stop.flush())
                self._emit_held()
                self._part, self._num_droppable = _Part.REASONING, 1
            case _Part.REASONING, "</think>":
                self._held = ""
                self._part, self._num_droppable = _Part.CONTENT, 2
            case _Part.CONTENT, "<tool_call>":
                self._hold_and_emit(self._stop.flush())
                self._begin_call()
            case _Part.CALL, "<tool_call>":
                self._end_call()
                if not self.has_ended:
                    self._hold_and_emit(self._stop.flush())
                    self._begin_call()
            case _Part.CALL, "</tool_call>":
                was_call = self._end_call()
                if not was_call:
                    self._take_content(TOOL_CALL_END)
            case _:
                self._take(switch)

    def _take_reasoning(self, text: str) -> None:
        if self._num_droppable:
            text = self._drop_newlines(text)
        body = text.rstrip("\n")
        if body:
            self._emit(DeltaKind.REASONING, self._held + body)
            self._held = ""
        self._held += text[len(body) :]

    def _take_content(self, text: str) -> None:
        if self._stop.hit is not None:
            return
        if self._num_droppable:
            text = self._drop_newlines(text)
        if self.num_ids <= self._min_tokens:
            self._hold_and_emit(text)
            return
        self._hold_and_emit(self._stop.push(text) if self._stop.strings else text)
        if self._stop.hit is not None:
            self._emit_held()

    def _hold_and_emit(self, text: str) -> None:
        """Content behind the stop strings: white space waits, where a call may follow."""
        body = text.rstrip() if self._holds_space else text
        if body:
            self._out.append(Delta(DeltaKind.TEXT, self._held + body))
            self._held = ""
            self._follows_call = False
        if len(body) < len(text):
            self._held += text[len(body) :]

    def _emit_held(self) -> None:
        """This part ends and no call follows."""
        if not (self._part is _Part.CONTENT and self._follows_call):
            self._emit(DeltaKind.REASONING if self._part is _Part.REASONING else DeltaKind.TEXT, self._held)
        self._held = ""

    def _drop_newlines(self, text: str) -> str:
        while self._num_droppable and text:
            self._num_droppable = self._num_droppable - 1 if text[0] == "\n" else 0
            text = text.removeprefix("\n")
        return text

    def _begin_call(self) -> None:
        self._part, self._num_droppable = _Part.CALL, 0
        self._call = ToolCallReader(self._types, self._num_calls, make_call_id(self._call_id_seed, self._num_calls))

    def _read_call(self, call: ToolCallReader, text: str) -> None:
        was_confirmed = call.is_confirmed
        self._out += call.push(text)
        if call.is_confirmed and not was_confirmed:
            self._held = ""
            self._num_calls += 1
        if call.is_malformed:
            self._give_up_call(call)

    def _end_call(self) -> bool:
        """Whether it was one."""
        call = self._call
        if call is None:
            return False
        self._out += call.close()
        if call.is_malformed:
            self._give_up_call(call)
            return False
        self._part, self._call, self._follows_call = _Part.CONTENT, None, True
        if call.leftover:
            self._take_content(call.leftover)
        return True

    def _give_up_call(self, call: ToolCallReader) -> None:
        self._part, self._call = _Part.CONTENT, None
        self._take_content(TOOL_CALL + call.leftover)

    def _emit(self, kind: DeltaKind, text: str) -> None:
        if text:
            self._out.append(Delta(kind, text))

    def _drain(self) -> list[Delta]:
        out = self._out
        if not out:
            return []
        if len(out) == 1:
            self._out = []
            return out
        merged: list[Delta] = []
        for delta in self._out:
            last = merged[-1] if merged else None
            joins = last is not None and last.kind is delta.kind and last.tool_index == delta.tool_index
            if last is not None and joins and delta.kind is not DeltaKind.TOOL_CALL_START:
                merged[-1] = Delta(delta.kind, last.text + delta.text, delta.tool_index)
            else:
                merged.append(delta)
        self._out = []
        return merged
