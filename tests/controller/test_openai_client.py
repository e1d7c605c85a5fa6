"""The openai package against a real server on loopback: what its users rely on."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from shoal_fake_backend import (
    ARGUMENTS,
    CALL,
    TOOL_CALLS,
    FakeBackend,
    Output,
    byte_answer,
    delta,
    finish,
    served,
)

from shoal.controller.errors import ControllerError, EngineFailed, NoCapacity, Unavailable

HELLO: Any = [{"role": "user", "content": "Hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def test_chat_with_usage_and_logprobs() -> None:
    async with served(FakeBackend()) as url, client_of(url) as client:
        done = await client.chat.completions.create(model="auto", messages=HELLO, logprobs=True, top_logprobs=2)
    assert done.choices[0].message.content == "Hello"
    assert done.choices[0].finish_reason == "stop"
    assert done.usage is not None and done.usage.total_tokens == done.usage.prompt_tokens + 6
    assert done.usage.prompt_tokens_details is not None
    assert done.choices[0].logprobs is not None and done.choices[0].logprobs.content is not None
    assert [entry.token for entry in done.choices[0].logprobs.content] == [*"Hello", "<|im_end|>"]


async def test_a_stream_with_usage() -> None:
    async with served(FakeBackend()) as url, client_of(url) as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 6
    assert not chunks[-1].choices


async def test_its_stream_helper_puts_tool_calls_together() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        return [
            [Output(token_ids=[1], deltas=[delta(CALL, call_id="call_a", name="add")])],
            [Output(first_index=1, token_ids=[2], deltas=[delta(ARGUMENTS, '{"a":')])],
            [Output(first_index=2, token_ids=[3], deltas=[delta(ARGUMENTS, " 1}")], finish=finish(TOOL_CALLS, 3, 3))],
        ]

    async with served(FakeBackend(script)) as url, client_of(url) as client:
        async with client.chat.completions.stream(model="tiny", messages=HELLO, tools=TOOLS) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    (call,) = final.choices[0].message.tool_calls or []
    assert (call.id, call.function.name, call.function.arguments) == ("call_a", "add", '{"a": 1}')


async def test_legacy_completions_with_echo_and_logprobs() -> None:
    async with served(FakeBackend(lambda request, options: byte_answer(request, "!"))) as url, client_of(url) as client:
        done = await client.completions.create(model="tiny", prompt=["ab", "c"], max_tokens=2, echo=True, logprobs=1)
    assert [choice.text for choice in done.choices] == ["ab!", "c!"]
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b", "!", "<|im_end|>"]
    assert logprobs.token_logprobs == [None, -1.0, -0.5, -1.5]
    assert logprobs.text_offset == [0, 1, 2, 3]


async def test_models_are_listed() -> None:
    async with served(FakeBackend()) as url, client_of(url) as client:
        assert [model.id async for model in client.models.list()] == ["tiny", "auto"]
        assert (await client.models.retrieve("tiny")).owned_by == "shoal"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nothing")


@pytest.mark.parametrize(
    ("settings", "error", "param"),
    [
        ({"model": "nowhere"}, openai.NotFoundError, "model"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"temperature": 9}, openai.BadRequestError, "temperature"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, openai.BadRequestError, "messages[0].role"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
    ],
)
async def test_refusals_are_typed(settings: Any, error: type[openai.APIStatusError], param: str) -> None:
    async with served(FakeBackend()) as url, client_of(url) as client:
        with pytest.raises(error) as raised:
            await client.chat.completions.create(**({"model": "tiny", "messages": HELLO} | settings))
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (NoCapacity("full", retry_after_s=1), openai.RateLimitError),
        (Unavailable("none"), openai.InternalServerError),
        (EngineFailed("dead"), openai.InternalServerError),
    ],
    ids=["full", "none", "dead"],
)
async def test_failures_are_typed(refusal: ControllerError, error: type[openai.APIStatusError]) -> None:
    async with served(FakeBackend(refusal=refusal)) as url, client_of(url) as client:
        with pytest.raises(error) as raised:
            await client.chat.completions.create(model="tiny", messages=HELLO)
    assert raised.value.code == refusal.code
    assert raised.value.response.headers["retry-after"] == "1"


async def test_a_failure_inside_a_stream_is_raised() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        return [*byte_answer(request, "Hello")[:2], EngineFailed("the engine died")]

    async with served(FakeBackend(script)) as url, client_of(url) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="the engine died") as raised:
            async for _ in stream:
                pass
    assert raised.value.code == "engine_failed"


async def test_breaking_off_a_stream_frees_it() -> None:
    backend = FakeBackend(lambda request, options: [*byte_answer(request, "Hello")[:3], 60.0])
    async with served(backend) as url, client_of(url) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await backend.streams[0].closed.wait()
