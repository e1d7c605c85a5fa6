"""Answers in pieces: the same however the ids are cut, true to the text, and a call is what the template would have written."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.runtime.parser import AnswerParser
from shoal.runtime.tool_calls import make_call_id
from shoal.runtime.wire import Delta, DeltaKind

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"properties": {"n": {"type": "integer"}, "s": {"type": "string"}, "o": {"type": "object"}}},
    },
}
TEXT, REASONING, START, ARGUMENTS = DeltaKind
CALL = "<tool_call>\n<function=f>\n<parameter=n>\n5\n</parameter>\n<parameter=s>\na\nb\n</parameter>\n</function>\n</tool_call>"
SALT = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_start|>", "<|vision_pad|>", "<function=", "f", ">", "<function=f>\n",
    "<parameter=n>\n", "<parameter=", "5", "\n</parameter>\n", "</function>\n", "</parameter", "oops <a", "\n", "\n\n", " ", "word", "é🙂", "<", "{}",
]  # fmt: skip


@pytest.fixture(scope="module")
def salted(tokenizer):
    """Lists of ids: pieces of calls, control tokens, plain spellings of them, and any byte at all."""
    piece = st.one_of(
        st.sampled_from(SALT).map(tokenizer.encode_raw),
        st.sampled_from(SALT).map(tokenizer.encode_plain),
        st.lists(st.integers(0, tokenizer.vocab_size - 34), max_size=3),
    )
    return st.lists(piece, max_size=14).map(lambda pieces: [index for piece in pieces for index in piece])


def merged(deltas):
    """Neighbours of one kind (and call) joined; a start stands alone."""
    result = []
    for delta in deltas:
        if (
            result
            and delta.kind != START
            and result[-1].kind == delta.kind
            and result[-1].tool_index == delta.tool_index
        ):
            result[-1] = Delta(delta.kind, result[-1].text + delta.text, delta.tool_index)
        else:
            result.append(delta)
    return result


def run(tokenizer, chunks, **options):
    parser = AnswerParser(tokenizer, **{"mode": "chat", **options})
    deltas = [delta for chunk in chunks for delta in parser.push(chunk)]
    deltas += parser.finish()
    assert all(delta.text or delta.kind == START for delta in deltas)
    return merged(deltas), parser


def answer(tokenizer, text, **options):
    """Readable pieces: (kind, text or name)."""
    deltas, _ = run(tokenizer, [[index] for index in tokenizer.encode_raw(text)], **options)
    return [("call" if d.kind == START else d.kind.name.lower().split("_")[-1], d.name or d.text) for d in deltas]


@settings(max_examples=300)
@given(data=st.data())
def test_however_the_ids_are_cut_the_answer_is_the_same(tokenizer, salted, data):
    ids = data.draw(salted)
    options = {
        "mode": data.draw(st.sampled_from(["chat", "chat", "raw"])),
        "starts_in_reasoning": data.draw(st.booleans()),
        "tools": data.draw(st.sampled_from([None, [TOOL]])),
        "stop": data.draw(st.lists(st.sampled_from(["\n\n", "wordword", "d<", "\n", "é", "<tool"]), max_size=2)),
        "min_tokens": data.draw(st.integers(0, 4)),
        "stop_ids": data.draw(st.sampled_from([[], [tokenizer.control_id("<|im_start|>")]])),
    }
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=4)))
    chunks = [ids[start:end] for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    one_by_one = run(tokenizer, [[index] for index in ids], **options)
    for other in (run(tokenizer, [ids], **options), run(tokenizer, chunks, **options)):
        assert other[0] == one_by_one[0]
        for name in ("stop_hit", "stop_id_hit", "saw_tool_call", "num_ids", "has_ended"):
            assert getattr(other[1], name) == getattr(one_by_one[1], name)


@settings(max_examples=200)
@given(data=st.data())
def test_raw_answers_are_the_decoded_ids(tokenizer, salted, data):
    ids = data.draw(salted)
    deltas, parser = run(tokenizer, [[index] for index in ids], mode="raw", starts_in_reasoning=True, tools=[TOOL])
    assert "".join(delta.text for delta in deltas) == tokenizer.decode(ids, skip_special=True)
    assert {delta.kind for delta in deltas} <= {TEXT}
    assert parser.num_ids == len(ids)


@settings(max_examples=200)
@given(data=st.data())
def test_nothing_but_white_space_and_markers_is_lost(tokenizer, salted, data):
    ids = data.draw(salted)
    starts_in_reasoning = data.draw(st.booleans())
    deltas, _ = run(tokenizer, [ids], starts_in_reasoning=starts_in_reasoning)
    # Characters do not reach over a marker, so decode between markers.
    markers = {tokenizer.control_id("<think>"), tokenizer.control_id("</think>")}
    runs = [[]]
    for index in ids:
        if index in markers:
            runs.append([])
        else:
            runs[-1].append(index)
    written = "".join(tokenizer.decode(one, skip_special=True) for one in runs)
    given_out = "".join(delta.text for delta in deltas)
    for text in ("<think>", "</think>", "\n"):
        written, given_out = written.replace(text, ""), given_out.replace(text, "")
    assert given_out == written


@settings(max_examples=200)
@given(data=st.data())
def test_arguments_always_join_to_an_object(tokenizer, salted, data):
    ids = tokenizer.encode_raw("<tool_call><function=f>") + data.draw(salted)
    deltas, parser = run(tokenizer, [[index] for index in ids], tools=[TOOL])
    assert parser.saw_tool_call
    starts = [delta for delta in deltas if delta.kind == START]
    assert [delta.tool_index for delta in starts] == list(range(len(starts)))
    for start in starts:
        joined = "".join(d.text for d in deltas if d.kind == ARGUMENTS and d.tool_index == start.tool_index)
        assert isinstance(json.loads(joined), dict)


@settings(max_examples=200)
@given(data=st.data())
def test_flags_of_the_markers_make_no_difference(tokenizer, flagged_tokenizer, salted, data):
    ids = data.draw(salted)
    options = {"starts_in_reasoning": data.draw(st.booleans()), "tools": data.draw(st.sampled_from([None, [TOOL]]))}
    # Without tools the two tool markers are ordinary added tokens, and those go by their flag.
    if not options["tools"]:
        ids = [
            index
            for index in ids
            if index not in (tokenizer.control_id("<tool_call>"), tokenizer.control_id("</tool_call>"))
        ]
    assert run(tokenizer, [ids], **options)[0] == run(flagged_tokenizer, [ids], **options)[0]


@settings(max_examples=200)
@given(data=st.data())
def test_stop_strings_end_the_text_at_the_first_match(tokenizer, salted, data):
    ids = data.draw(salted)
    stop = data.draw(
        st.lists(
            st.sampled_from(["\n", "wo", "word", "rd", "é🙂", "🙂", "</", "<think>", "dw"]), min_size=1, max_size=3
        )
    )
    deltas, parser = run(tokenizer, [[index] for index in ids], mode="raw", stop=stop)
    text = tokenizer.decode(ids, skip_special=True)
    ends = [(text.find(string) + len(string), text.find(string), string) for string in stop if string in text]
    if ends:
        _, start, string = min(ends)
        assert (parser.stop_hit, "".join(delta.text for delta in deltas)) == (string, text[:start])
    else:
        assert (parser.stop_hit, "".join(delta.text for delta in deltas)) == (None, text)


values = st.text(max_size=10).filter(lambda text: "\x00" not in text and "</" not in text)
json_value = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), values),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(values, inner, max_size=2)),
    max_leaves=5,
)
names = st.text("abcdefgh_", min_size=1, max_size=6)


def normalised(value):
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, dict):
        return {normalised(key): normalised(item) for key, item in value.items()}
    return [normalised(item) for item in value] if isinstance(value, list) else value


def json_kind(value):
    kinds = {
        type(None): "null",
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
    }
    return kinds[type(value)]


@settings(max_examples=150)
@given(arguments=st.dictionaries(names, json_value, max_size=4), content=values, reasoning=values)
def test_what_the_template_writes_is_read_back(tokenizer, template_36, arguments, content, reasoning):
    """An assistant's turn as the template writes it is an answer as the model should: reading it gives the turn again."""
    arguments = normalised(arguments)
    kinds = {name: {"type": json_kind(value)} for name, value in arguments.items()}
    tool = {"type": "function", "function": {"name": "g", "parameters": {"properties": kinds}}}
    call = {"type": "function", "function": {"name": "g", "arguments": arguments}}
    question = {"role": "user", "content": "a"}
    turn = {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": [call, call]}
    before = template_36.render([question], [tool]).text
    after = template_36.render([question, turn], [tool], add_generation_prompt=False).text
    assert after.startswith(before)
    end = tokenizer.eos_id
    deltas, parser = run(
        tokenizer, [tokenizer.encode_raw(after[len(before) :])], tools=[tool], starts_in_reasoning=True, stop_ids=[end]
    )
    texts = {kind: "".join(delta.text for delta in deltas if delta.kind == kind) for kind in (TEXT, REASONING)}
    assert texts[TEXT] == normalised(content).strip() and texts[REASONING] == normalised(reasoning).strip()
    assert parser.stop_id_hit == end
    for index in (0, 1):
        joined = "".join(d.text for d in deltas if d.kind == ARGUMENTS and d.tool_index == index)
        assert json.loads(joined) == arguments
    assert [delta.name for delta in deltas if delta.kind == START] == ["g", "g"]


REASONED = "hm\n</think>\n\nHello"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (REASONED, [("reasoning", "hm"), ("text", "Hello")]),
        ("\n</think>\n\nHello", [("text", "Hello")]),
        ("\n\na\n\nb\n\n\n</think>\n\n\nHello\n", [("reasoning", "\na\n\nb"), ("text", "\nHello\n")]),
        ("a</think>b", [("reasoning", "a"), ("text", "b")]),
        ("never closed\n", [("reasoning", "never closed\n")]),
        ("a <tool_call> b</tool_call></think>c", [("reasoning", "a <tool_call> b</tool_call>"), ("text", "c")]),
        ("a<think>b</think>c</think>d", [("reasoning", "a<think>b"), ("text", "c</think>d")]),
        (f"hm\n</think>\n\n{CALL}", [("reasoning", "hm"), ("call", "f"), ("arguments", '{"n": 5, "s": "a\\nb"}')]),
    ],
)
def test_reasoning(tokenizer, text, want):
    assert answer(tokenizer, text, starts_in_reasoning=True, tools=[TOOL]) == want


def test_reasoning_may_begin_in_the_answer(tokenizer):
    assert answer(tokenizer, f"x\n<think>\n{REASONED}") == [("text", "x\n"), ("reasoning", "hm"), ("text", "Hello")]


def test_a_marker_spelled_with_ordinary_tokens_is_text(tokenizer):
    text = f"a</think>{CALL}"
    deltas, parser = run(tokenizer, [tokenizer.encode_plain(text)], starts_in_reasoning=True, tools=[TOOL])
    assert deltas == [Delta(REASONING, text)]
    assert not parser.saw_tool_call


ONE = [("call", "f"), ("arguments", '{"n": 5, "s": "a\\nb"}')]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (CALL, ONE),
        (f"Let me see.\n\n{CALL}\n", [("text", "Let me see."), *ONE]),
        (f"{CALL}\n{CALL}", ONE * 2),
        (f"{CALL}{CALL} done", [*ONE, *ONE, ("text", " done")]),
        (CALL.removesuffix("\n</tool_call>"), ONE),
        (CALL.removesuffix("\n</function>\n</tool_call>"), ONE),
        (CALL.removesuffix("\n</parameter>\n</function>\n</tool_call>"), ONE),
        (CALL.removesuffix("meter>\n</function>\n</tool_call>"), ONE),
        (CALL.replace("\n</parameter>\n</function>\n</tool_call>", "\n</function>\n</tool_call>"), ONE),
        (CALL.replace("\n</tool_call>", f"\n{CALL}"), ONE * 2),
        ("<tool_call>\n<function=f>\n</function>\n</tool_call>", [("call", "f"), ("arguments", "{}")]),
        ("<tool_call><function=f>", [("call", "f"), ("arguments", "{}")]),
        ("<tool_call><function=f><par", [("call", "f"), ("arguments", "{}")]),
        ("<tool_call><function=f><parameter=n", [("call", "f"), ("arguments", "{}")]),
        ("<tool_call><function=f><parameter=n>True</parameter></function></tool_call>", [("call", "f"), ("arguments", '{"n": true}')]),
        (
            "<tool_call><function=f><parameter=s>a<tool_response><think></parameter></function></tool_call>",
            [("call", "f"), ("arguments", '{"s": "a<tool_response><think>"}')],
        ),
        (
            "<tool_call><function=f>oops <parameter=n>1</parameter> no, really</function>\n!</tool_call>",
            [("call", "f"), ("arguments", '{"n": 1}'), ("text", "oops  no, really\n!")],
        ),
        ("<tool_call><function=unknown>\n<parameter=n>\n5\n</parameter>", [("call", "unknown"), ("arguments", '{"n": "5"}')]),
        # What is no call comes out as it was written.
        ("a\n\n<tool_call>{}</tool_call>", [("text", "a\n\n<tool_call>{}</tool_call>")]),
        ("<tool_call>\n<function=", [("text", "<tool_call>\n<function=")]),
        ("<tool_call><function=></function></tool_call>", [("text", "<tool_call><function=></function></tool_call>")]),
        ("<tool_call><function=a\nb>", [("text", "<tool_call><function=a\nb>")]),
        ("<tool_call><function=" + "x" * 300, [("text", "<tool_call><function=" + "x" * 300)]),
        (f"<tool_call>{CALL}</tool_call>", [("text", "<tool_call>"), *ONE, ("text", "</tool_call>")]),
        ("</tool_call> a", [("text", "</tool_call> a")]),
    ],
)  # fmt: skip
def test_calls(tokenizer, text, want):
    assert answer(tokenizer, text, tools=[TOOL]) == want


def test_without_tools_a_call_is_text(tokenizer):
    assert answer(tokenizer, f"a\n{CALL}") == [("text", f"a\n{CALL}")]


def test_a_call_is_told_as_it_comes(tokenizer):
    """The start with the name, each argument with its end."""
    parser = AnswerParser(tokenizer, mode="chat", tools=[TOOL], call_id_seed="request-1/0")
    assert parser.push(tokenizer.encode_raw("Hi.\n\n<tool_call>\n<function=f")) == [Delta(TEXT, "Hi.")]
    start = Delta(START, "", 0, make_call_id("request-1/0", 0), "f")
    assert parser.push(tokenizer.encode_raw(">\n<parameter=n>\n4")) == [start]
    assert parser.push(tokenizer.encode_raw("2\n</parameter>")) == [Delta(ARGUMENTS, '{"n": 42', 0)]
    assert parser.push(tokenizer.encode_raw("\n</function>\n</tool_call>")) == [Delta(ARGUMENTS, "}", 0)]
    assert parser.finish() == parser.finish() == []


def test_call_ids_differ_and_are_repeatable():
    ids = [make_call_id(seed, index) for seed in ("a", "b") for index in (0, 1)]
    assert len(set(ids)) == 4 and ids[0] == make_call_id("a", 0)
    assert all(len(one) == 29 and one.startswith("call_") for one in ids)


def test_no_piece_ends_inside_a_character(tokenizer):
    parser = AnswerParser(tokenizer, mode="raw")
    ids = tokenizer.encode_plain("\U0001f9ff")
    assert len(ids) > 1
    assert [parser.push([index]) for index in ids[:-1]] == [[]] * (len(ids) - 1)
    assert parser.push(ids[-1:]) == [Delta(TEXT, "\U0001f9ff")]
    parser.push(ids[:1])
    assert parser.finish() == [Delta(TEXT, "\ufffd")]


def test_stop_ids_end_the_answer_without_text(tokenizer):
    end = tokenizer.eos_id
    parser = AnswerParser(tokenizer, mode="chat", stop_ids=[end])
    assert parser.push([*tokenizer.encode_raw("word"), end, *tokenizer.encode_raw("more")]) == [Delta(TEXT, "word")]
    assert (parser.stop_id_hit, parser.has_ended, parser.finish()) == (end, True, [])
    assert parser.num_ids == len(tokenizer.encode_raw("word")) + 1
    ignored, _ = run(tokenizer, [[*tokenizer.encode_raw("word"), end, *tokenizer.encode_raw("more")]])
    assert ignored == [Delta(TEXT, "wordmore")]


def test_stop_strings_look_at_content_only(tokenizer):
    text = f"b\n</think>\n\na\n\n{CALL}\n a b c"
    want = [("reasoning", "b"), ("text", "a"), *ONE, ("text", "\n a ")]
    assert answer(tokenizer, text, starts_in_reasoning=True, tools=[TOOL], stop=["b"]) == want


def test_a_stop_string_of_white_space_ends_at_once_though_a_call_might_follow(tokenizer):
    parser = AnswerParser(tokenizer, mode="chat", tools=[TOOL], stop=["\n\n"])
    assert parser.push(tokenizer.encode_raw("a\n\n")) == [Delta(TEXT, "a")]
    assert parser.stop_hit == "\n\n" and parser.has_ended
    assert parser.push(tokenizer.encode_raw("b")) == parser.finish() == []


def test_the_first_ids_match_no_stop_string(tokenizer):
    ids = tokenizer.encode_plain("a,b,c")
    assert len(ids) == 5
    deltas, parser = run(tokenizer, [ids], mode="raw", stop=[","], min_tokens=2)
    assert (deltas, parser.stop_hit, parser.num_ids) == ([Delta(TEXT, "a,b")], ",", 4)


def test_what_may_begin_a_stop_string_is_held_back(tokenizer):
    parser = AnswerParser(tokenizer, mode="raw", stop=["END"])
    assert parser.push(tokenizer.encode_plain("aEN")) == [Delta(TEXT, "a")]
    assert parser.push(tokenizer.encode_plain("Eb")) == [Delta(TEXT, "ENEb")]
    assert parser.push(tokenizer.encode_plain("E")) == []
    assert parser.finish() == [Delta(TEXT, "E")]
    assert parser.stop_hit is None
