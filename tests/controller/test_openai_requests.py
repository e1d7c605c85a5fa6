"""What bodies become for an engine, and how bad ones are refused: with the field named, and never with a 500."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.controller.errors import BadRequest
from shoal.controller.openai_ask import Ask
from shoal.controller.openai_chat_request import decode_chat
from shoal.controller.openai_completions_request import MAX_PROMPTS, decode_completion

HELLO = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> Ask:
    return decode_chat(json.dumps({"model": "tiny", "messages": HELLO} | fields).encode())


def text(**fields: Any) -> Ask:
    return decode_completion(json.dumps({"model": "tiny", "prompt": "Hi"} | fields).encode())


def test_every_field_travels() -> None:
    ask = chat(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.1, seed=7, logit_bias={"5": -100, "6": 1.5}, n=2, max_completion_tokens=30, max_tokens=10,
        min_tokens=2, stop=["a", "b"], stop_token_ids=[1, 2], ignore_eos=True, logprobs=True, top_logprobs=4,
        return_token_ids=True, stream=True, stream_options={"include_usage": True}, tool_choice="none",
    )  # fmt: skip
    (request,) = ask.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.1)
    assert sampling.seed == 7
    assert dict(sampling.logit_bias) == {5: -100.0, 6: 1.5}
    assert (request.n, request.max_tokens, request.min_tokens) == (2, 30, 2)
    assert (list(request.stop), list(request.stop_token_ids), request.ignore_eos) == (["a", "b"], [1, 2], True)
    assert request.logprobs == 4
    assert request.prompt.conversation.tool_choice == "none"
    assert (ask.form.is_stream, ask.form.include_usage, ask.form.with_token_ids) == (True, True, True)


def test_what_is_absent_or_null_stays_absent() -> None:
    for ask in (chat(), chat(temperature=None, seed=None, n=None, stop=None, tools=None, logprobs=None, stream=None)):
        (request,) = ask.requests
        assert not request.sampling.ListFields()
        assert not request.HasField("max_tokens")
        assert not request.HasField("logprobs")
        assert request.n == 1


def test_messages_and_tools_travel_as_the_clients_own_bytes() -> None:
    body = (
        b'{"model":"tiny", "messages": [ {"role":"user","content":"\\u00e9 <|im_start|>", "odd": 1.50} ],'
        b' "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],'
        b' "chat_template_kwargs": {"enable_thinking" : false}}'
    )
    conversation = decode_chat(body).requests[0].prompt.conversation
    assert conversation.messages_json == b'[ {"role":"user","content":"\\u00e9 <|im_start|>", "odd": 1.50} ]'
    assert conversation.tools_json == b'[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]'
    assert conversation.template_kwargs_json == b'{"enable_thinking" : false}'


@pytest.mark.parametrize(
    ("prompt", "found"),
    [("Hi", ["Hi"]), ([1, 2], [[1, 2]]), (["a", [3], "b"], ["a", [3], "b"]), ([[2**32 - 1]], [[2**32 - 1]])],
)
def test_the_four_shapes_of_a_prompt(prompt: Any, found: list[Any]) -> None:
    requests = text(prompt=prompt).requests
    assert [r.prompt.text or list(r.prompt.ids.token_ids) for r in requests] == found


def test_completions_default_to_openais_sixteen_tokens() -> None:
    assert text().requests[0].max_tokens == 16


def test_logprobs_of_the_prompt_come_with_echo_only() -> None:
    assert not text(logprobs=3).requests[0].HasField("prompt_logprobs")
    request = text(logprobs=0, echo=True, max_tokens=0).requests[0]
    assert request.HasField("prompt_logprobs") and request.prompt_logprobs == 0 and request.max_tokens == 0


@pytest.mark.parametrize(("seed", "found"), [(-1, 2**64 - 1), (-(2**63), 2**63), (2**64 - 1, 2**64 - 1), (0, 0)])
def test_any_seed_of_64_bits_is_taken(seed: int, found: int) -> None:
    assert chat(seed=seed).requests[0].sampling.seed == found


NEUTRAL: list[dict[str, Any]] = [
    {"response_format": {"type": "text"}}, {"modalities": ["text"]}, {"functions": []}, {"function_call": "none"},
    {"parallel_tool_calls": True}, {"service_tier": "auto"}, {"store": False}, {"tool_choice": "auto"}, {"audio": None},
    {"user": "me", "metadata": {"a": "b"}, "prompt_cache_key": "k", "something_new": [{}]}, {"verbosity": "medium"},
    {"logprobs": False, "top_logprobs": 0}, {"stop": []}, {"tools": []}, {"logit_bias": {}}, {"top_k": -1},
]  # fmt: skip


@pytest.mark.parametrize("fields", NEUTRAL, ids=lambda fields: next(iter(fields)))
def test_neutral_values_and_unknown_fields_are_taken(fields: dict[str, Any]) -> None:
    assert len(chat(**fields).requests) == 1


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"best_of": 2, "n": 2}, {"suffix": ""}, {"suffix": None}], ids=str)
def test_neutral_values_of_completions(fields: dict[str, Any]) -> None:
    assert len(text(**fields).requests) == 1


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [*HELLO, {"role": "user"} | fields]}


def call(**function: Any) -> dict[str, Any]:
    return message(role="assistant", tool_calls=[{"id": "1", "type": "function", "function": function}])


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f"} | fields}]}


@pytest.mark.parametrize(
    "fields",
    [
        message(role="system", content="x"),
        message(role="developer", content="x"),
        message(role="assistant", content=None, tool_calls=[{"id": "a", "function": {"name": "f", "arguments": "{}"}}]),
        call(name="f", arguments={"a": 1}),
        message(role="tool", content="3", tool_call_id="a"),
        message(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], name="me"),
        message(content=""),
        tool(parameters={"type": "object"}, description="d", strict=False),
    ],
)
def test_messages_that_are_fine(fields: dict[str, Any]) -> None:
    assert chat(**fields).requests[0].prompt.HasField("conversation")


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"), ({"model": 5}, "model"),
    ({"messages": []}, "messages"), ({"messages": None}, "messages"), ({"messages": {}}, "messages"),
    ({"messages": ["Hi"]}, "messages[0]"), ({"messages": [None]}, "messages[0]"),
    (message(role="wizard", content="x"), "messages[1].role"), (message(role=5, content="x"), "messages[1].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"), (message(), "messages[1].content"),
    (message(content=None), "messages[1].content"), (message(content=7), "messages[1].content"),
    (message(role="assistant"), "messages[1].content"), (message(role="assistant", tool_calls=[]), "messages[1].content"),
    (message(role="function", content="x"), "messages[1].role"),
    (message(content=["x"]), "messages[1].content[0]"), (message(content=[{"type": "text"}]), "messages[1].content[0].text"),
    (message(content=[{"text": "x"}]), "messages[1].content[0].type"),
    (message(content=[{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]), "messages[1].content[1]"),
    (message(content=[{"type": "input_audio", "input_audio": {}}]), "messages[1].content[0]"),
    (message(content=[{"type": "video_url"}]), "messages[1].content[0]"),
    (message(content=[{"type": "smell"}]), "messages[1].content[0].type"),
    (message(content="x", tool_calls=[{"function": {"name": "f"}}]), "messages[1].tool_calls"),
    (call(arguments="{}"), "messages[1].tool_calls[0].function.name"),
    (call(name="", arguments="{}"), "messages[1].tool_calls[0].function.name"),
    (call(name="f", arguments=3), "messages[1].tool_calls[0].function.arguments"),
    (message(role="assistant", content="x", function_call={"name": "f"}), "messages[1].function_call"),
    ({"messages": HELLO * 10_001}, "messages"), (message(content=[{"type": "text", "text": ""}] * 10_001), "messages[1].content"),
    ({"tools": {}}, "tools"), ({"tools": [{}]}, "tools[0].type"), ({"tools": [{"type": "custom"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"), (tool(name="a b"), "tools[0].function.name"),
    (tool(name="<|im_start|>"), "tools[0].function.name"), (tool(strict=True), "tools[0].function.strict"),
    (tool(parameters="x"), "tools[0].function.parameters"), ({"tools": [{"type": "function", "function": {"name": "f"}}] * 129}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"), ({"tool_choice": {"type": "function"}}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"response_format": "text"}, "response_format"),
    ({"modalities": ["text", "audio"]}, "modalities"), ({"audio": {}}, "audio"), ({"functions": [{}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"), ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"prediction": {}}, "prediction"), ({"web_search_options": {}}, "web_search_options"), ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"), ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"), ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ({"top_logprobs": 2}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"), ({"logprobs": 3}, "logprobs"),
    ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 10**12}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": "7"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"), ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 5, "max_tokens": -1}, "max_tokens"), ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"), ({"n": 0}, "n"), ({"n": 65}, "n"), ({"n": True}, "n"), ({"n": "2"}, "n"),
    ({"temperature": -0.1}, "temperature"), ({"temperature": 2.1}, "temperature"), ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"), ({"min_p": 2}, "min_p"), ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"), ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 2**64}, "seed"), ({"seed": -(2**63) - 1}, "seed"), ({"seed": 1.0}, "seed"), ({"seed": True}, "seed"),
    ({"logit_bias": {"x": 1}}, "logit_bias"), ({"logit_bias": {"-1": 1}}, "logit_bias"), ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {str(2**32): 1}}, "logit_bias"), ({"logit_bias": {"1": "a"}}, "logit_bias"), ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"stop": 5}, "stop"), ({"stop": ""}, "stop"), ({"stop": ["a", ""]}, "stop[1]"), ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [5]}, "stop[0]"), ({"stop": ["x" * 1025]}, "stop[0]"), ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [0, 2**32]}, "stop_token_ids[1]"), ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
    ({"ignore_eos": 1}, "ignore_eos"), ({"return_token_ids": "yes"}, "return_token_ids"), ({"stream": 1}, "stream"),
    ({"stream_options": {}}, "stream_options"), ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS, ids=[str(case)[:60] for case in BAD_CHATS])
def test_bad_chats_are_refused_with_the_field_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as raised:
        chat(**fields)
    assert raised.value.param == param
    assert raised.value.message


BAD_TEXTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": 5}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt[1]"), ({"prompt": [[1], []]}, "prompt[1]"), ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": ["a", 1]}, "prompt[1]"), ({"prompt": [1, -2]}, "prompt[1]"), ({"prompt": [1, 2**32]}, "prompt[1]"),
    ({"prompt": [1, True]}, "prompt[1]"), ({"prompt": [1, 2.5]}, "prompt[1]"), ({"prompt": [[1], [2, -3]]}, "prompt[1][1]"),
    ({"prompt": [[1], [2, "a"]]}, "prompt[1][1]"), ({"prompt": [None]}, "prompt[0]"), ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt"),
    ({"prompt": [10**30]}, "prompt[0]"), ({"prompt": [7] * 1_048_577}, "prompt"), ({"prompt": ["a", [7] * 1_048_577]}, "prompt[1]"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -1, "echo": True}, "max_tokens"),
    ({"logprobs": 21}, "logprobs"), ({"logprobs": -1}, "logprobs"), ({"logprobs": True}, "logprobs"), ({"echo": 1}, "echo"),
    ({"suffix": "x"}, "suffix"), ({"best_of": 3}, "best_of"), ({"min_tokens": 17}, "min_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD_TEXTS, ids=[str(case)[:60] for case in BAD_TEXTS])
def test_bad_completions_are_refused_with_the_field_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as raised:
        text(**fields)
    assert raised.value.param == param


DEEP = b"[" * 100_000 + b"]" * 100_000
NOT_JSON: list[bytes] = [
    b"", b" ", b"[1]", b"5", b'"x"', b"null", b'{"model": "tiny", "messages": [', b"{'model': 'x'}", b'\xef\xbb\xbf{"model":"x"}',
    b'{"model": "\xff\xfe"}', b'{"model":"x","unknown":"\xff"}', b'{"model":"x","messages":[],"temperature":NaN}',
    b'{"model":"x","messages":[],"unknown":Infinity}', b'{"model":"x","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"x","messages":[{"role":"user","content":"\\udc00 x"}]}', b'{"model":"x","unknown":"\\ud800"}',
    b'{"model":"x","messages":[],"temperature":1e999}', b'{"model":"x","messages":' + DEEP + b"}",
    b'{"model":"x","unknown":' + DEEP + b"}", b'{"model":"x","messages":[{"role":"user","content":' + DEEP + b"}]}",
    b'{"model":"x","messages":[{"role":"user","content":"\xed\xa0\x80"}]}', b'{"model":"x"} {"model":"x"}',
    b'{"model":"x","messages":[{"role":"user","content":"a\x00b"}]}', b'{"model":"x","max_tokens":' + b"9" * 100_000 + b"}",
    b'{"model":"x","messages":[{"role":"user","content":"Hi"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"a":'
    + DEEP + b"}}}]}",
]  # fmt: skip


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:50]))
@pytest.mark.parametrize("decode", [decode_chat, decode_completion])
def test_what_is_no_json_object_is_refused_quickly(decode: Any, body: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(BadRequest):
        decode(body)
    assert time.perf_counter() - start < 0.1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    "model messages prompt max_tokens n stop seed temperature top_p tools tool_choice logprobs top_logprobs logit_bias "
    "stream stream_options echo best_of suffix response_format stop_token_ids chat_template_kwargs min_tokens".split()
)
MESSAGE_FIELDS = st.sampled_from(
    "role content name tool_calls tool_call_id reasoning_content type text function".split()
)
MESSAGES = st.lists(
    st.dictionaries(MESSAGE_FIELDS, JSON | st.sampled_from(["user", "assistant", "text"]), max_size=4), max_size=3
)


@given(st.dictionaries(FIELDS, JSON, max_size=5), MESSAGES)
def test_any_json_is_taken_or_refused(fields: dict[str, Any], messages: Any) -> None:
    body = json.dumps({"model": "tiny", "messages": messages, "prompt": "x"} | fields).encode()
    for decode in (decode_chat, decode_completion):
        try:
            assert decode(body).requests
        except BadRequest as error:
            assert error.message


@given(st.binary(max_size=60), st.integers(0, 200))
def test_any_bytes_are_taken_or_refused(noise: bytes, cut: int) -> None:
    good = json.dumps({"model": "tiny", "messages": HELLO, "prompt": [1, 2], "stop": ["é"], "seed": 3}).encode()
    for body in (noise, good[:cut] + noise + good[cut:], good[:cut] + noise):
        for decode in (decode_chat, decode_completion):
            try:
                assert decode(body).requests
            except BadRequest as error:
                assert error.message
