"""A request body to a typed value, or a BadRequest that names the field: JSON exactly as the standard has it.

NaN, Infinity, lone surrogates, bytes that are not UTF-8 and nesting beyond the decoder's depth are refused; unknown fields
are skipped (their syntax is checked); of a repeated key the last one counts.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from .errors import BadRequest

T = TypeVar("T")

_AT = re.compile(r"^(?P<what>.*?) - at (?:`key` in )?`\$(?P<path>[^`]*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`$")


def decode_body(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The body as the decoder's type. Raises BadRequest with `param` for the first offending field."""
    try:
        # The decoder skips unknown fields without looking at their characters; they may travel on inside messages.
        str(body, "utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (byte {error.start})", code="invalid_json") from None
    return decode_value(body, decoder, "")


def decode_value(raw: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[T], prefix: str) -> T:
    """A part of a body whose path is `prefix`. Raises BadRequest."""
    try:
        return decoder.decode(raw)
    except RecursionError:
        raise BadRequest("the JSON is nested too deeply", param=prefix or None, code="invalid_json") from None
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error), prefix) from None
    except ValueError as error:
        message = str(error)
        if "truncated" in message and bytes(raw).rstrip().endswith(b"}"):
            message = "a string in it ends inside a surrogate pair or is not closed"
        raise BadRequest(f"the body is not valid JSON: {message}", param=prefix or None, code="invalid_json") from None


def _wrong_field(message: str, prefix: str) -> BadRequest:
    found = _AT.match(message)
    what, path = (found["what"], found["path"]) if found else (message, "")
    # An entry of a mapping is shown as `[...]`: the mapping itself is the nearest name.
    path = prefix + path.replace("[...]", "")
    missing = _MISSING.match(what)
    if missing:
        path = f"{path}.{missing['field']}"
        what = "is required"
    path = path.removeprefix(".")
    return BadRequest(f"{path}: {what}" if path else f"the body: {what}", param=path or None)
