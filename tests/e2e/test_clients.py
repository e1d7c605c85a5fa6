"""Clients that people have: the openai package, and gRPC by reflection alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import openai
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from shoal_e2e_fleet import Fleet  # type: ignore[import-not-found]

pytestmark = pytest.mark.e2e

QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]


@pytest.fixture
def client(fleet: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_openai_answers_with_usage(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="auto", messages=QUESTION, temperature=0)  # type: ignore[arg-type]
    assert "42" in (done.choices[0].message.content or "")
    assert done.choices[0].finish_reason == "stop"
    assert done.usage is not None and done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_openai_streams_with_usage(client: openai.OpenAI) -> None:
    stream: Any = client.chat.completions.create(
        model="pocket",
        messages=QUESTION,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},  # type: ignore[arg-type]
    )
    chunks = list(stream)
    assert "42" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert {"pocket", "auto"} <= {model.id for model in client.models.list()}


def _tool(name: str, about: str, parameter: str, meaning: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {parameter: {"type": "string", "description": meaning}},
        "required": [parameter],
    }
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


TOOLS = [
    _tool("get_weather", "Current weather of a city", "city", "Name of the city"),
    _tool("find_phone", "Phone number of a person", "name", "Name of the person"),
]


def test_openai_calls_a_tool_and_uses_its_result(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    asked = create(model="auto", messages=messages, tools=TOOLS, temperature=0).choices[0]
    assert asked.finish_reason == "tool_calls"
    (call,) = asked.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Oslo"}
    messages += [
        asked.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "sunny"}'},
    ]
    answer = create(model="auto", messages=messages, tools=TOOLS, temperature=0).choices[0].message.content
    assert "21" in answer and "sunny" in answer


def test_openai_streams_a_tool_call_in_pieces_that_join(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    chunks = list(create(model="auto", messages=messages, tools=TOOLS, temperature=0, stream=True))
    calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert [call.function.name for call in calls if call.function.name] == ["get_weather"]
    assert json.loads("".join(call.function.arguments or "" for call in calls)) == {"city": "Oslo"}
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "tool_calls"


def test_openai_gets_reasoning_apart_from_the_answer(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    extra = {"chat_template_kwargs": {"enable_thinking": True}}
    message = create(model="auto", messages=QUESTION, temperature=0, extra_body=extra).choices[0].message
    assert message.reasoning_content and "42" in message.content
    assert "<think>" not in message.content and "</think>" not in message.content


@pytest.mark.parametrize(
    ("settings", "error", "param"),
    [
        ({"model": "nowhere"}, openai.NotFoundError, "model"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"temperature": 9}, openai.BadRequestError, "temperature"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, openai.BadRequestError, "messages[0].role"),
    ],
)
def test_openai_raises_typed_errors(
    client: openai.OpenAI, settings: dict[str, Any], error: type[openai.APIStatusError], param: str
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(**({"model": "auto", "messages": QUESTION} | settings))
    assert raised.value.param == param  # type: ignore[attr-defined]


class Reflected:
    """Calls methods that are known from the server's reflection only."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))

    def message(self, name: str) -> Any:
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(f"shoal.v1.{name}"))

    def call(self, service: str, method: str, request: Any, *, streamed: bool = False) -> Any:
        reply = self.pool.FindServiceByName(f"shoal.v1.{service}").FindMethodByName(method).output_type
        make = self.channel.unary_stream if streamed else self.channel.unary_unary
        stub = make(
            f"/shoal.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(reply).FromString,
        )
        return stub(request, timeout=30)


@pytest.fixture
def reflected(fleet: Fleet) -> Iterator[Reflected]:
    with grpc.insecure_channel(fleet.ready["grpc"]) as channel:
        yield Reflected(channel)


def test_grpc_by_reflection_lists_models_and_generates(reflected: Reflected) -> None:
    models = reflected.call("Inference", "ListModels", reflected.message("ListModelsRequest")())
    assert "pocket" in {model.id for model in models.models}
    request = reflected.message("GenerateRequest")()
    request.request.model = "pocket"
    request.request.prompt.conversation.messages_json = b'[{"role": "user", "content": "What is 17 + 25?"}]'
    request.request.sampling.temperature = 0.0
    request.request.max_tokens = 60
    events = list(reflected.call("Inference", "Generate", request, streamed=True))
    text = "".join(delta.text for event in events for delta in event.output.deltas if delta.kind == 1)
    assert "42" in text
    assert events[-1].output.finish.usage.completion_tokens > 0


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "nowhere"}, grpc.StatusCode.NOT_FOUND),
        ({"max_tokens": -5}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"messages": b"[{"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"messages": b"[" * 100_000}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"ids": [999_999]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"temperature": float("nan")}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_grpc_refuses_bad_input_with_the_right_status(
    reflected: Reflected, change: dict[str, Any], status: grpc.StatusCode
) -> None:
    request = reflected.message("GenerateRequest")()
    request.request.model = change.get("model", "pocket")
    if "ids" in change:
        request.request.prompt.ids.token_ids.extend(change["ids"])
    else:
        request.request.prompt.conversation.messages_json = change.get("messages", b'[{"role":"user","content":"Hi"}]')
    if "max_tokens" in change:
        request.request.max_tokens = change["max_tokens"]
    if "temperature" in change:
        request.request.sampling.temperature = change["temperature"]
    with pytest.raises(grpc.RpcError) as raised:
        list(reflected.call("Inference", "Generate", request, streamed=True))
    assert raised.value.code() == status  # type: ignore[attr-defined]
