import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.tool_arguments import MAX_LITERAL_CHARS, parameter_types, to_json


@pytest.mark.parametrize(
    ("text", "types", "want"),
    [
        ("5", {"string"}, '"5"'),
        ("5", set(), '"5"'),
        ("5", {"integer"}, "5"),
        (" 5 ", {"integer"}, "5"),
        ("5.0", {"number"}, "5.0"),
        ("five", {"integer"}, '"five"'),
        ("007", {"integer"}, '"007"'),
        ("True", {"boolean"}, "true"),
        ("true", {"boolean"}, "true"),
        ("None", {"null"}, "null"),
        ("[1, 2", {"array"}, '"[1, 2"'),
        ("['a', (1, 2)]", {"array"}, '["a", [1, 2]]'),
        ("{'a': None, 1: 'é'}", {"object"}, '{"a": null, "1": "é"}'),
        ('{"b": 1, "a": 2}', {"object"}, '{"b": 1, "a": 2}'),
        ("{1, 2}", {"array"}, '"{1, 2}"'),
        ("{(1, 2): 3}", {"object"}, '"{(1, 2): 3}"'),
        ("b'a'", {"string", "object"}, "\"b'a'\""),
        ("1j", {"number"}, '"1j"'),
        ("NaN", {"number"}, '"NaN"'),
        ("1e999", {"number"}, '"1e999"'),
        ("__import__('os')", {"object"}, "\"__import__('os')\""),
        (r"'\d'", {"object"}, r'"\\d"'),
        ("'\\ud800'", {"object"}, '"\\ud800"'),
        ("null", {"string", "null"}, "null"),
        ("nothing", {"string", "null"}, '"nothing"'),
        ("5", {"string", "null"}, '"5"'),
        ("5", {"string", "number"}, "5"),
        ('"5"', {"string", "number"}, '"\\"5\\""'),
        ("[" * 100_000, {"array"}, json.dumps("[" * 100_000)),
        ("-" * (MAX_LITERAL_CHARS + 1), {"integer"}, json.dumps("-" * (MAX_LITERAL_CHARS + 1))),
        ("(" * 60_000, {"array"}, json.dumps("(" * 60_000)),
        ("9" * 5000, {"integer"}, json.dumps("9" * 5000)),
        ("\x00", {"integer"}, '"\\u0000"'),
        ("", {"integer"}, '""'),
    ],
)
def test_values(text, types, want):
    assert to_json(text, frozenset(types)) == want


@given(
    text=st.text(), types=st.frozensets(st.sampled_from(["string", "integer", "object", "array", "null", "boolean"]))
)
def test_a_value_is_always_json_and_a_string_always_itself(text, types):
    value = json.loads(to_json(text, types))
    if types <= {"string"}:
        assert value == text


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_json_and_python_spellings_are_read(value):
    types = frozenset({"object", "array", "null", "boolean", "integer", "number"})
    assert json.loads(to_json(json.dumps(value), types)) == value
    assert json.loads(to_json(repr(value), types)) == value


def types_of(schema, **parameters):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"p": schema}, **parameters}}}
    return parameter_types([tool])["f"]["p"]


@pytest.mark.parametrize(
    ("schema", "want"),
    [
        ({"type": "integer"}, {"integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"integer", "null"}),
        ({"oneOf": [{"enum": [1, "a", True]}, {"const": None}]}, {"integer", "string", "boolean", "null"}),
        ({"enum": ["a", "b"]}, {"string"}),
        ({"$ref": "#/$defs/d"}, {"object"}),
        ({"$ref": "#/$defs/loop"}, set()),
        ({"$ref": "#/$defs/none"}, set()),
        ({"$ref": "elsewhere"}, set()),
        ({}, set()),
        (True, set()),
        ({"type": 5, "anyOf": 6, "enum": 7}, set()),
    ],
)
def test_types_of_a_schema(schema, want):
    assert types_of(schema, **{"$defs": {"d": {"type": "object"}, "loop": {"$ref": "#/$defs/loop"}}}) == want


def test_tools_of_another_form_say_nothing():
    odd = [
        {},
        {"function": 1},
        {"function": {"name": 1}},
        {"function": {"name": "a"}},
        {"name": "b", "parameters": {"properties": []}},
    ]
    assert parameter_types(odd) == {"a": {}, "b": {}}
    flat = {"name": "c", "parameters": {"properties": {"n": {"type": "number"}}}}
    assert parameter_types([flat]) == {"c": {"n": {"number"}}}
