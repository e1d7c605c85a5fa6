"""Server-sent events whose fixed parts are prepared once a stream."""

from __future__ import annotations

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode

# Not line ends for server-sent events, but many clients split there too. JSON allows their escapes in any string,
# and outside of strings they cannot stand.
_LINE_ENDS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def event(value: Any) -> bytes:
    """One event whose data is this value as JSON."""
    return b"data: " + line_safe(_encode(value)) + b"\n\n"


def line_safe(encoded: bytes) -> bytes:
    """The same JSON without the characters that look like ends of lines."""
    for raw, escaped in _LINE_ENDS:
        if raw in encoded:
            encoded = encoded.replace(raw, escaped)
    return encoded


class ChunkTemplate:
    """Writes chunks of one stream: only what changes is encoded."""

    def __init__(self, head: dict[str, Any], num_choices: int, *, with_usage: bool) -> None:
        """`head`: id, object, created, model. With usage every chunk but the last has `usage` null."""
        self._head = b"data: " + line_safe(_encode(head))[:-1]
        self._choices = [b',"choices":[{"index":%d,' % index for index in range(num_choices)]
        self._null_usage = b',"usage":null' if with_usage else b""

    def choice(self, index: int, fields: dict[str, Any], extra: dict[str, Any] | None = None) -> bytes:
        """A chunk with one choice; `fields` beside its index, `extra` beside `choices`."""
        return b"".join(
            (
                self._head,
                self._choices[index],
                line_safe(_encode(fields))[1:],
                b"]",
                self._null_usage,
                b"," + line_safe(_encode(extra))[1:-1] if extra else b"",
                b"}\n\n",
            )
        )

    def last(self, extra: dict[str, Any]) -> bytes:
        """The chunk with no choices that carries the usage."""
        return self._head + b',"choices":[],' + line_safe(_encode(extra))[1:] + b"\n\n"
