"""The table of tokens, against the JSON that it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.kernels.cpu import Vocabulary

tables = st.dictionaries(st.text(max_size=6), st.integers(0, 999), max_size=12).filter(
    lambda table: len(set(table.values())) == len(table)
)


@given(table=tables, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 0, 2]))
def test_every_token_stands_at_its_id(table, ensure_ascii, indent):
    text = json.dumps(table, ensure_ascii=ensure_ascii, indent=indent)
    vocabulary = Vocabulary(text.encode("utf-8", errors="surrogatepass"))
    assert vocabulary.size == max(table.values(), default=-1) + 1
    tokens = {index: token for token, index in table.items()}
    for index in range(-1, vocabulary.size + 1):
        literal = vocabulary.literal(index)
        found = None if literal is None else json.loads(literal.decode("utf-8", errors="surrogatepass"))
        assert found == tokens.get(index)
    longest = max(map(len, table), default=0)
    assert longest <= vocabulary.longest <= 2 * longest


def test_tokens_that_look_like_json_are_tokens():
    table = {'":5,': 0, '":7,"': 1, "\\": 2, '\\"': 3, "}": 4, "{": 5, ",": 6, ": 9": 8}
    vocabulary = Vocabulary(json.dumps(table).encode())
    assert [json.loads(vocabulary.literal(index)) for index in table.values()] == list(table)
    assert (vocabulary.size, vocabulary.longest, vocabulary.literal(7)) == (9, 5, None)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "{}}", "[]", "null", "5", '{"a"}', '{"a":}', '{"a":1', '{"a":1,', '{"a":1,}', '{"a":1 "b":2}', '{"a":-1}', '{"a":1.5}',
        '{"a":"b"}', '{"a":null}', '{a:1}', '{"a:1}', '{"a\\', '{"a\\u', '{"a":16777216}', '{"a":99999999999999999999999}', '{"a":1}x',
        "\0", '{"a":1\0}', '{"a":1}\0',
    ],
)  # fmt: skip
def test_what_is_no_table_of_ids_is_refused(text):
    with pytest.raises(ValueError, match="no table of ids"):
        Vocabulary(text.encode())
