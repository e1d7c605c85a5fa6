"""The words that a model wrote for a tool's parameter, as the JSON value that the tool's schema asks for.

In the call format a value is bare text: `5` may be a number or a string, and only the schema knows. A string stays what it is; any
other type is read as JSON, then as a Python literal (`True`, `{'a': 1}`), and stays text where it is neither.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

MAX_LITERAL_CHARS = 64 * 1024
"""Longer values are read as JSON or stay text; the reader of Python literals is not made for them."""

_MAX_REFERENCE_DEPTH = 8

ParameterTypes = Mapping[str, Mapping[str, frozenset[str]]]
"""Tool name -> parameter name -> JSON types that its schema allows (none: it does not say)."""


def parameter_types(tools: Sequence[Mapping[str, Any]]) -> ParameterTypes:
    """Collect the types from tools in OpenAI's form. What is not of that form counts as saying nothing."""
    types: dict[str, dict[str, frozenset[str]]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            continue
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        if not isinstance(properties, dict):
            properties = {}
        types[function["name"]] = {
            name: frozenset(_types_of(schema, parameters, _MAX_REFERENCE_DEPTH)) for name, schema in properties.items()
        }
    return types


def _types_of(schema: Any, root: Any, depth: int) -> set[str]:
    if not isinstance(schema, dict) or depth <= 0:
        return set()
    declared = schema.get("type")
    if isinstance(declared, str):
        return {declared}
    if isinstance(declared, list):
        return {name for name in declared if isinstance(name, str)}
    types: set[str] = set()
    for key in ("anyOf", "oneOf", "allOf"):
        for option in schema[key] if isinstance(schema.get(key), list) else []:
            types |= _types_of(option, root, depth - 1)
    values = schema.get("enum") if isinstance(schema.get("enum"), list) else []
    types |= {_type_name(value) for value in [*(values or []), *([schema["const"]] if "const" in schema else [])]}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target = root
        for step in reference[2:].split("/"):
            target = target.get(step) if isinstance(target, dict) else None
        types |= _types_of(target, root, depth - 1)
    return types


def _type_name(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def to_json(text: str, types: frozenset[str]) -> str:
    """JSON text of a parameter's value; always valid JSON."""
    if types - {"string"}:
        for read in (_read_json, _read_literal):
            try:
                value = read(text)
                if "string" in types and not _is_of(value, types):
                    continue
                return _dump(value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
    return _dump(text)


def _is_of(value: Any, types: frozenset[str]) -> bool:
    name = _type_name(value)
    return name != "string" and (name in types or (name == "integer" and "number" in types))


def _read_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _read_literal(text: str) -> Any:
    if len(text) > MAX_LITERAL_CHARS:
        raise ValueError("too long for a literal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model's backslashes are not ours to complain about
        return ast.literal_eval(text.strip())


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, escaped in what the model wrote
        return json.dumps(value, allow_nan=False)
    return text
