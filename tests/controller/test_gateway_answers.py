"""Answers of the two generation routes over a scripted backend: shapes, and that a stream and a body say the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
from shoal_fake_backend import (
    ARGUMENTS,
    CALL,
    LENGTH,
    REASONING,
    STOP_ID,
    TEXT,
    TOOL_CALLS,
    FakeBackend,
    Output,
    byte_answer,
    connected,
    delta,
    events_of,
    finish,
)

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hi"}]
TIMINGS = {"queue_s": 0.25, "prefill_s": 0.5, "ttft_s": 0.75, "decode_s": 1.0, "total_s": 2.0}
WIDE = "Grüße, 世界 🐟!"


async def post(backend: FakeBackend, path: str, body: dict[str, Any], **headers: str) -> Any:
    async with connected(backend) as client:
        response = await client.post(path, json={"model": "tiny"} | body, headers=headers)
    assert response.status_code == 200, response.text
    return response


async def both(backend: FakeBackend, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The body and the chunks of the same request; the stream ends with [DONE]."""
    whole = (await post(backend, path, body)).json()
    events = events_of((await post(backend, path, body | {"stream": True})).text)
    assert events[-1] is None and None not in events[:-1]
    return whole, events[:-1]


async def test_a_completion_has_openais_shape() -> None:
    response = await post(FakeBackend(), TEXTS, {"prompt": "abcd", "max_tokens": 9}, **{"X-Request-Id": "mine"})
    assert response.headers["x-request-id"] == "mine"
    assert (response.headers["x-shoal-node"], response.headers["x-shoal-attempts"]) == ("node-1", "1")
    answer = response.json()
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "id": "cmpl-mine",
        "object": "text_completion",
        "model": "tiny",
        "choices": [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 6,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
        "shoal": {"node": "node-1", "attempts": 1, "timings": TIMINGS},
    }


async def test_a_chat_answer_has_openais_shape_and_auto_is_resolved() -> None:
    answer = (await post(FakeBackend(), CHAT, {"model": "auto", "messages": HELLO})).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


@pytest.mark.parametrize("path", [CHAT, TEXTS])
async def test_a_stream_and_a_body_say_the_same(path: str) -> None:
    backend = FakeBackend(lambda request, options: byte_answer(request, WIDE))
    prompt = (
        {"messages": HELLO, "logprobs": True, "top_logprobs": 2} if path == CHAT else {"prompt": "x", "logprobs": 2}
    )
    whole, chunks = await both(backend, path, prompt | {"return_token_ids": True})
    choice = whole["choices"][0]
    pieces = [chunk["choices"][0] for chunk in chunks]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    assert text == WIDE
    assert "".join(p["delta"].get("content", "") if path == CHAT else p["text"] for p in pieces) == WIDE
    assert [i for p in pieces for i in p["token_ids"]] == choice["token_ids"] == [*WIDE.encode(), STOP_ID]
    if path == CHAT:
        entries = [entry for p in pieces for entry in p["logprobs"]["content"]]
        assert entries == choice["logprobs"]["content"]
    else:
        for name, values in choice["logprobs"].items():
            assert [value for p in pieces for value in p["logprobs"][name]] == values
    assert [p["finish_reason"] for p in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert all("prompt_token_ids" not in chunk for chunk in chunks[1:])
    assert chunks[-1]["shoal"] == whole["shoal"]
    assert all("shoal" not in chunk and "usage" not in chunk for chunk in chunks[:-1])


async def test_without_ids_and_logprobs_half_a_character_makes_no_event() -> None:
    backend = FakeBackend(lambda request, options: byte_answer(request, "é世"))
    _, chunks = await both(backend, TEXTS, {"prompt": "x"})
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["é", "世", ""]


async def test_include_usage_adds_a_last_chunk_without_choices() -> None:
    body = {"messages": HELLO, "stream_options": {"include_usage": True}, "stream": True}
    *chunks, last, done = events_of((await post(FakeBackend(), CHAT, body)).text)
    assert done is None
    assert all(chunk["usage"] is None and "shoal" not in chunk for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 6
    assert last["shoal"]["timings"] == TIMINGS
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    assert {chunk["object"] for chunk in [*chunks, last]} == {"chat.completion.chunk"}


async def test_the_first_chunk_has_the_role_and_only_the_first() -> None:
    _, chunks = await both(FakeBackend(), CHAT, {"messages": HELLO})
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "H"}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])


def reasoned_calls(request: Any, options: Any) -> list[Any]:
    def flush(index: int, *deltas: Any, **fields: Any) -> list[Any]:
        return [Output(first_index=index, token_ids=[index], deltas=deltas, **fields)]

    return [
        flush(0, delta(REASONING, "Let me ")),
        flush(1, delta(REASONING, "see."), delta(TEXT, "I ask.")),
        flush(2, delta(CALL, call_id="call_a", name="add", tool_index=0)),
        flush(3, delta(ARGUMENTS, '{"a": ', tool_index=0), delta(ARGUMENTS, "1}", tool_index=0)),
        flush(4, delta(CALL, call_id="call_b", name="sub", tool_index=1), delta(ARGUMENTS, "{}", tool_index=1)),
        flush(5, finish=finish(TOOL_CALLS, 3, 6)),
    ]


async def test_reasoning_and_tool_calls_in_both_forms() -> None:
    whole, chunks = await both(FakeBackend(reasoned_calls), CHAT, {"messages": HELLO})
    calls = [
        {"id": "call_a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "call_b", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
    ]
    choice = whole["choices"][0]
    assert choice["message"] == {
        "role": "assistant",
        "content": "I ask.",
        "reasoning_content": "Let me see.",
        "tool_calls": calls,
    }
    assert choice["finish_reason"] == "tool_calls"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": "", "reasoning_content": "Let me "},
        {"reasoning_content": "see.", "content": "I ask."},
        {"tool_calls": [{"index": 0, **calls[0], "function": {"name": "add", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]},
        {"tool_calls": [{"index": 1, **calls[1]}]},
        {},
    ]


async def test_an_answer_of_calls_alone_has_null_content() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        return [*reasoned_calls(request, options)[2:]]

    whole = (await post(FakeBackend(script), CHAT, {"messages": HELLO})).json()
    assert whole["choices"][0]["message"]["content"] is None


async def test_echo_with_logprobs_in_the_legacy_shape() -> None:
    body = {"prompt": "añb", "echo": True, "logprobs": 1, "max_tokens": 5, "return_token_ids": True}
    backend = FakeBackend(lambda request, options: byte_answer(request, "é!", reason=LENGTH))
    whole, chunks = await both(backend, TEXTS, body)
    choice = whole["choices"][0]
    assert choice["text"] == "añbé!"
    assert choice["finish_reason"] == "length"
    assert choice["token_ids"] == [*"é!".encode(), STOP_ID]
    assert whole["prompt_token_ids"] == list("añb".encode())
    found = choice["logprobs"]
    assert found["tokens"] == ["a", r"bytes:\xc3", r"bytes:\xb1", "b", r"bytes:\xc3", r"bytes:\xa9", "!", "<|im_end|>"]
    assert found["token_logprobs"] == [None, -1.0, -2.0, -3.0, -0.5, -1.5, -2.5, -3.5]
    assert found["top_logprobs"][0] is None
    assert found["top_logprobs"][3] == {"b": -3.0}
    # Characters, counted from the front; a byte inside a character stands where the character does.
    assert found["text_offset"] == [0, 1, 1, 2, 3, 3, 4, 5]
    assert chunks[0]["choices"][0]["text"] == "añb"
    for name, values in found.items():
        assert [value for chunk in chunks for value in chunk["choices"][0]["logprobs"][name]] == values
    assert all(request.prompt_logprobs == 1 and request.echo for request in backend.requests)


async def test_scoring_needs_no_generation() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        first = byte_answer(request, "")[0][0]
        out = Output(prompt=first.prompt, finish=finish(LENGTH, 3, 0))
        return [[out]]

    body = {"prompt": [97, 98, 99], "echo": True, "logprobs": 0, "max_tokens": 0}
    whole, chunks = await both(FakeBackend(script), TEXTS, body)
    assert whole["choices"][0]["text"] == "abc"
    assert whole["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.0, -2.0]
    assert whole["choices"][0]["logprobs"]["top_logprobs"] == [None, {"b": -1.0}, {"c": -2.0}]
    assert whole["usage"]["completion_tokens"] == 0
    assert chunks[0]["choices"][0]["logprobs"] == whole["choices"][0]["logprobs"]


async def test_chat_logprobs_have_bytes_and_alternatives() -> None:
    backend = FakeBackend(lambda request, options: byte_answer(request, "A"))
    answer = (await post(backend, CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 2})).json()
    first = answer["choices"][0]["logprobs"]["content"][0]
    assert first == {
        "token": "A",
        "logprob": -0.5,
        "bytes": [65],
        "top_logprobs": [
            {"token": "A", "logprob": -0.5, "bytes": [65]},
            {"token": "B", "logprob": pytest.approx(-0.5 - math.log(2)), "bytes": [66]},
        ],
    }


async def test_minus_infinity_can_be_written() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        steps = byte_answer(request, "A")
        steps[0][0].logprobs[0].logprob = -math.inf
        return steps

    answer = (await post(FakeBackend(script), CHAT, {"messages": HELLO, "logprobs": True})).json()
    assert answer["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0


async def test_choices_of_one_prompt_are_told_apart_by_index() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        runs = [byte_answer(request, text, choice=choice) for choice, text in enumerate(("one", "two", "six"))]
        return [[out for (out,) in flush] for flush in zip(*runs, strict=True)]

    whole, chunks = await both(FakeBackend(script), CHAT, {"messages": HELLO, "n": 3})
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["one", "two", "six"]
    assert whole["usage"]["completion_tokens"] == 12
    texts = {0: "", 1: "", 2: ""}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "one", 1: "two", 2: "six"}
    assert [index for index, chunk in enumerate(chunks) if "shoal" in chunk] == [len(chunks) - 1]


async def test_several_prompts_times_n_stay_on_one_node_and_in_order() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        text = bytes(request.prompt.ids.token_ids or request.prompt.text.encode()).decode()
        runs = [byte_answer(request, text + str(choice), choice=choice) for choice in range(2)]
        # Later prompts answer sooner.
        return [0.03 / (1 + ord(text[0]) - ord("a")), *(step for run in runs for step in run)]

    body = {"prompt": ["a", [98], "cc", "d", "e"], "n": 2, "return_token_ids": True}
    backend = FakeBackend(script)
    whole, chunks = await both(backend, TEXTS, body)
    assert [choice["text"] for choice in whole["choices"]] == [t + i for t in ("a", "b", "cc", "d", "e") for i in "01"]
    assert [choice["index"] for choice in whole["choices"]] == list(range(10))
    assert [c["prompt_token_ids"] for c in whole["choices"][::2]] == [[97], [98], [99, 99], [100], [101]]
    assert "prompt_token_ids" not in whole
    assert whole["usage"]["prompt_tokens"] == 6
    texts = dict.fromkeys(range(10), "")
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert list(texts.values()) == [choice["text"] for choice in whole["choices"]]
    assert [options.node_id for options in backend.options[:5]] == [None, *["node-1"] * 4]
    assert len({options.request_id for options in backend.options[:5]}) == 5
    assert all(stream.closed.is_set() for stream in backend.streams)


async def test_line_separators_do_not_tear_events() -> None:
    text = "a\u2028b\u2029c\u0085d\ne"
    backend = FakeBackend(lambda request, options: byte_answer(request, text))
    response = await post(backend, TEXTS, {"prompt": "x", "stream": True})
    assert len(response.text.splitlines()) == response.text.count("\n")
    assert "".join(e["choices"][0]["text"] for e in events_of(response.text)[:-1]) == text


async def test_energy_is_shown_when_it_is_known() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        steps = byte_answer(request, "A")
        steps[-1][0].finish.energy.joules = 2.5
        steps[-1][0].finish.energy.provenance = "rapl"
        return steps

    answer = (await post(FakeBackend(script), CHAT, {"messages": HELLO})).json()
    assert answer["shoal"]["energy"] == {"joules": 2.5, "provenance": "rapl"}


async def test_a_pin_reaches_the_backend() -> None:
    backend = FakeBackend()
    response = await post(backend, CHAT, {"messages": HELLO}, **{"X-Shoal-Node": "node-2"})
    assert backend.options[0].node_id == "node-2"
    assert response.headers["x-shoal-node"] == "node-2"
    assert response.json()["shoal"]["node"] == "node-2"


async def test_choices_that_are_quicker_than_their_prompt_wait_for_it() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        slow, quick = byte_answer(request, "a", choice=0), byte_answer(request, "b", choice=1)
        return [*quick, [*slow[0]], *slow[1:]]

    whole, chunks = await both(FakeBackend(script), TEXTS, {"prompt": "P", "echo": True, "n": 2, "logprobs": 0})
    assert [choice["text"] for choice in whole["choices"]] == ["Pa", "Pb"]
    assert [choice["logprobs"]["tokens"][0] for choice in whole["choices"]] == ["P", "P"]
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["Pa", "Pb"]
