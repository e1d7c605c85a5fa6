"""Reads one tool call in the XML-like format of the family, as its text arrives.

    <tool_call>
    <function=NAME>
    <parameter=A>
    VALUE
    </parameter>
    </function>
    </tool_call>

`ToolCallReader` gets what stands between the two `tool_call` tokens. The start is told as soon as NAME is known; the
arguments as pieces of one JSON object, a parameter at a time, when its value is complete. One newline at each end of a value
belongs to the format. Ends that the model forgot are supplied, so that the pieces always make a whole object.
"""

from __future__ import annotations

import enum
import hashlib

from .tool_arguments import ParameterTypes, to_json
from .wire import Delta, DeltaKind

MAX_NAME_CHARS = 256
"""A longer name is no name."""

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"


class _State(enum.Enum):
    HEAD = enum.auto()
    """Before NAME is known."""
    BODY = enum.auto()
    """Between parameters."""
    VALUE = enum.auto()
    AFTER = enum.auto()
    """Behind `</function>`."""
    MALFORMED = enum.auto()
    """This is no call; `leftover` has all of its text."""


def make_call_id(seed: str, index: int) -> str:
    """The same for the same request and call, so that an answer can be rebuilt from its ids."""
    return "call_" + hashlib.sha256(f"{seed}\0{index}".encode("utf-8", "surrogatepass")).hexdigest()[:24]


class ToolCallReader:
    """`push` text, then `close`. `index` counts the calls of the answer."""

    def __init__(self, types: ParameterTypes, index: int, call_id: str) -> None:
        self._types = types
        self._index = index
        self._call_id = call_id
        self._state = _State.HEAD
        self._buffer = ""
        self._searched = 0
        """In VALUE: no end of the parameter begins before this position."""
        self._name = ""
        self._parameter = ""
        self._num_arguments = 0
        self.leftover = ""
        """Text that has no place in a call. The caller owes it to the reader of the answer."""

    @property
    def is_confirmed(self) -> bool:
        """The name is known: this is a call."""
        return self._state not in (_State.HEAD, _State.MALFORMED)

    @property
    def is_malformed(self) -> bool:
        return self._state is _State.MALFORMED

    def push(self, text: str) -> list[Delta]:
        """What has become known with this text. Push nothing more once `is_malformed`."""
        self._buffer += text
        deltas: list[Delta] = []
        moved = True
        while moved:
            match self._state:
                case _State.HEAD:
                    moved = self._read_head(deltas)
                case _State.BODY:
                    moved = self._read_body()
                case _State.VALUE:
                    moved = self._read_value(deltas)
                case _:
                    self.leftover += self._buffer
                    self._buffer = ""
                    moved = False
        return deltas

    def close(self) -> list[Delta]:
        """The call ends here, in whatever state. Unconfirmed, it becomes malformed."""
        deltas: list[Delta] = []
        if self._state is _State.HEAD:
            self._become_malformed()
        if not self.is_confirmed:
            return deltas
        if self._state is _State.VALUE:
            self._add_argument(_without_cut_end(self._buffer), deltas)
        self._buffer = ""  # at most a tag that was cut off
        deltas.append(self._arguments("{}" if self._num_arguments == 0 else "}"))
        self._state = _State.AFTER
        self.leftover = self.leftover.strip()
        return deltas

    def _read_head(self, deltas: list[Delta]) -> bool:
        seen = self._buffer.lstrip()
        if len(seen) <= len(_FUNCTION):
            if not _FUNCTION.startswith(seen):
                self._become_malformed()
            return False
        end = seen.find(">", len(_FUNCTION))
        raw_name = seen[len(_FUNCTION) : end if end >= 0 else None]
        if not seen.startswith(_FUNCTION) or "\n" in raw_name or len(raw_name) > MAX_NAME_CHARS:
            self._become_malformed()
            return False
        if end < 0:
            return False
        self._name = raw_name.strip()
        if not self._name:
            self._become_malformed()
            return False
        self._buffer = seen[end + 1 :]
        self._state = _State.BODY
        start = Delta(DeltaKind.TOOL_CALL_START, tool_index=self._index, call_id=self._call_id, name=self._name)
        deltas.append(start)
        return True

    def _read_body(self) -> bool:
        bare = self._buffer.lstrip()
        if self.leftover:  # white space inside what is left over; at its ends it does not count
            self.leftover += self._buffer[: len(self._buffer) - len(bare)]
        self._buffer = bare
        if not self._buffer or (_FUNCTION_END.startswith(self._buffer) and self._buffer != _FUNCTION_END):
            return False
        if self._buffer.startswith(_FUNCTION_END):
            self._buffer = self._buffer[len(_FUNCTION_END) :]
            self._state = _State.AFTER
            return True
        if _PARAMETER.startswith(self._buffer):
            return False
        if self._buffer.startswith(_PARAMETER):
            end = self._buffer.find(">")
            name = self._buffer[len(_PARAMETER) : end if end >= 0 else None]
            if "\n" not in name and len(name) <= MAX_NAME_CHARS:
                if end < 0:
                    return False
                self._parameter = name.strip()
                self._buffer = self._buffer[end + 1 :]
                self._searched = 0
                self._state = _State.VALUE
                return True
        stray_end = self._buffer.find("<", 1)
        stray_end = len(self._buffer) if stray_end < 0 else stray_end
        self.leftover += self._buffer[:stray_end]
        self._buffer = self._buffer[stray_end:]
        return True

    def _read_value(self, deltas: list[Delta]) -> bool:
        end = self._buffer.find(_PARAMETER_END, self._searched)
        if end < 0:
            self._searched = max(0, len(self._buffer) - len(_PARAMETER_END) + 1)
            return False
        self._add_argument(self._buffer[:end], deltas)
        self._buffer = self._buffer[end + len(_PARAMETER_END) :]
        self._state = _State.BODY
        return True

    def _add_argument(self, value: str, deltas: list[Delta]) -> None:
        value = value.removeprefix("\n").removesuffix("\n")
        types = self._types.get(self._name, {}).get(self._parameter, frozenset[str]())
        opening = "{" if self._num_arguments == 0 else ", "
        deltas.append(self._arguments(f"{opening}{to_json(self._parameter, frozenset())}: {to_json(value, types)}"))
        self._num_arguments += 1

    def _arguments(self, text: str) -> Delta:
        return Delta(DeltaKind.TOOL_CALL_ARGUMENTS, text=text, tool_index=self._index)

    def _become_malformed(self) -> None:
        self._state = _State.MALFORMED
        self.leftover += self._buffer
        self._buffer = ""


def _without_cut_end(value: str) -> str:
    """The value of a parameter whose end tag is missing: `</function>`, or the beginning of a tag, is not part of it."""
    bare = value.rstrip()
    if bare.endswith(_FUNCTION_END):
        return bare.removesuffix(_FUNCTION_END)
    for tag in (_PARAMETER_END, _FUNCTION_END):
        for length in range(len(tag) - 1, 1, -1):
            if bare.endswith(tag[:length]):
                return bare[: len(bare) - length]
    return value
