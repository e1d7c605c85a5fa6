"""What a gRPC client that knows nothing but reflection can do, and every refusal with its status, code and field."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from shoal_fake_fleet import FakeAgent, FakeFleet, eventually, fake_fleet, output

from shoal.proto.v1 import (
    fleet_pb2,
    fleet_pb2_grpc,
    generation_pb2,
    inference_pb2,
    inference_pb2_grpc,
    link_pb2,
)

STOP = generation_pb2.FINISH_REASON_STOP
HELLO = b'[{"role": "user", "content": "Hi"}]'


def reflected_answer(address: str) -> tuple[list[str], list[Any]]:
    """Models and events, by a blocking client that has no generated code."""
    with grpc.insecure_channel(address) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))

        def message(name: str) -> Any:
            return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shoal.v1.{name}"))

        def call(method: str, request: Any, make: Any) -> Any:
            reply = pool.FindServiceByName("shoal.v1.Inference").FindMethodByName(method).output_type
            return make(
                f"/shoal.v1.Inference/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=message_factory.GetMessageClass(reply).FromString,
            )(request, timeout=10)

        models = call("ListModels", message("ListModelsRequest")(), channel.unary_unary)
        request = message("GenerateRequest")()
        request.request.model = "tiny"
        request.request.prompt.conversation.messages_json = HELLO
        events = list(call("Generate", request, channel.unary_stream))
    return [model.id for model in models.models], events


async def answer_one(agent: FakeAgent) -> Any:
    submit = await agent.expect("submit")
    await agent.outputs(output(submit.request_id, 0, [5]))
    await agent.outputs(output(submit.request_id, 1, [6], STOP))
    return submit


async def test_a_client_from_reflection_alone_lists_models_and_generates() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        (models, events), submit = await asyncio.gather(
            asyncio.to_thread(reflected_answer, fleet.address), answer_one(agent)
        )
    assert models == ["tiny", "auto"]
    assert submit.request.prompt.conversation.messages_json == HELLO
    assert [list(event.output.token_ids) for event in events] == [[5], [6]]
    assert {(event.request_id, event.node_id, event.attempts) for event in events} == {(submit.request_id, "n1", 1)}
    assert events[-1].output.finish.reason == STOP


def request(**fields: Any) -> inference_pb2.GenerateRequest:
    node_id = fields.pop("node_id", "")
    prompt = fields.pop("prompt", {"conversation": {"messages_json": HELLO}})
    return inference_pb2.GenerateRequest(
        node_id=node_id, request=generation_pb2.GenerationRequest(**({"model": "tiny", "prompt": prompt} | fields))
    )


def conversation(messages: bytes, **fields: Any) -> dict[str, Any]:
    return {"conversation": {"messages_json": messages} | fields}


INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
REFUSED: list[tuple[str, dict[str, Any], grpc.StatusCode, str, str | None]] = [
    ("no model", {"model": ""}, INVALID, "invalid_request", "model"),
    ("long model", {"model": "x" * 300}, INVALID, "invalid_request", "model"),
    ("unknown model", {"model": "nowhere"}, MISSING, "model_not_found", "model"),
    ("unknown node", {"node_id": "nowhere"}, MISSING, "node_not_found", None),
    ("no prompt", {"prompt": {}}, INVALID, "invalid_request", "prompt"),
    ("empty text", {"prompt": {"text": ""}}, INVALID, "invalid_request", "prompt.text"),
    ("no ids", {"prompt": {"ids": {}}}, INVALID, "invalid_request", "prompt.ids.token_ids"),
    ("id too large", {"prompt": {"ids": {"token_ids": [1, 2, 300]}}}, INVALID, "invalid_token_id", "prompt[2]"),
    ("cut JSON", {"prompt": conversation(b"[{")}, INVALID, "invalid_request", "prompt.conversation.messages_json"),
    ("deep JSON", {"prompt": conversation(b"[" * 100_000)}, INVALID, "invalid_request", "prompt.conversation.messages_json"),
    ("no array", {"prompt": conversation(b"{}")}, INVALID, "invalid_request", "prompt.conversation.messages_json"),
    ("no messages", {"prompt": conversation(b"[]")}, INVALID, "invalid_request", "prompt.conversation.messages_json"),
    ("no role", {"prompt": conversation(b'[{"role": 1}]')}, INVALID, "invalid_request", "prompt.conversation.messages_json[0]"),
    ("tools", {"prompt": conversation(HELLO, tools_json=b"1")}, INVALID, "invalid_request", "prompt.conversation.tools_json"),
    ("tool choice", {"prompt": conversation(HELLO, tool_choice="x")}, INVALID, "invalid_request", "prompt.conversation.tool_choice"),
    ("negative max", {"max_tokens": -5}, INVALID, "invalid_request", "max_tokens"),
    ("zero max", {"max_tokens": 0}, INVALID, "invalid_request", "max_tokens"),
    ("huge max", {"max_tokens": 2**40}, INVALID, "invalid_request", "max_tokens"),
    ("min over max", {"max_tokens": 2, "min_tokens": 3}, INVALID, "invalid_request", "min_tokens"),
    ("nan", {"sampling": {"temperature": float("nan")}}, INVALID, "invalid_request", "sampling.temperature"),
    ("hot", {"sampling": {"temperature": 2.5}}, INVALID, "invalid_request", "sampling.temperature"),
    ("top_p 0", {"sampling": {"top_p": 0.0}}, INVALID, "invalid_request", "sampling.top_p"),
    ("top_k", {"sampling": {"top_k": -2}}, INVALID, "invalid_request", "sampling.top_k"),
    ("bias", {"sampling": {"logit_bias": {1: 1000.0}}}, INVALID, "invalid_request", "sampling.logit_bias"),
    ("bias of no token", {"sampling": {"logit_bias": {300: 1.0}}}, INVALID, "invalid_request", "logit_bias"),
    ("logprobs", {"logprobs": 21}, INVALID, "invalid_request", "logprobs"),
    ("many stops", {"stop": ["x"] * 17}, INVALID, "invalid_request", "stop"),
    ("empty stop", {"stop": ["a", ""]}, INVALID, "invalid_request", "stop[1]"),
    ("stop id", {"stop_token_ids": [300]}, INVALID, "invalid_token_id", "stop_token_ids[0]"),
    ("many choices", {"n": 1000}, INVALID, "invalid_request", "n"),
    ("too large", {"prompt": {"text": "x" * 9_000_000}}, grpc.StatusCode.RESOURCE_EXHAUSTED, "payload_too_large", None),
]  # fmt: skip


@pytest.fixture(scope="module")
def cases() -> Iterator[dict[str, tuple[grpc.StatusCode, dict[str, str]]]]:
    """All refusals from one controller: status and trailing metadata by the case's name."""

    async def ask() -> dict[str, tuple[grpc.StatusCode, dict[str, str]]]:
        found = {}
        async with fake_fleet() as fleet:
            agent = await fleet.agent()
            stub: Any = inference_pb2_grpc.InferenceStub(fleet.channel)
            for name, fields, *_ in REFUSED:
                call = stub.Generate(request(**fields))
                code = await call.code()
                found[name] = (code, {str(key): str(value) for key, value in await call.trailing_metadata()})
            await agent.send(heartbeat=link_pb2.Heartbeat(sequence=1))
            await agent.expect("heartbeat_ack")  # not one of them had reached it
            assert not fleet.records.records
        return found

    yield asyncio.run(ask())


@pytest.mark.parametrize(("name", "status", "code", "param"), [(n, s, c, p) for n, _, s, c, p in REFUSED])
def test_refusals(cases: Any, name: str, status: grpc.StatusCode, code: str, param: str | None) -> None:
    found, metadata = cases[name]
    assert (found, metadata["shoal-error-code"], metadata.get("shoal-error-param")) == (status, code, param)


async def inference(fleet: FakeFleet) -> Any:
    return inference_pb2_grpc.InferenceStub(fleet.channel)  # type: ignore[no-untyped-call]


async def test_cancelling_the_call_cancels_the_request() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        call = (await inference(fleet)).Generate(request())
        submit = await agent.expect("submit")
        await agent.outputs(output(submit.request_id, 0, [5]))
        assert list((await call.read()).output.token_ids) == [5]
        call.cancel()
        assert (await agent.expect("cancel")).request_id == submit.request_id


async def test_a_lost_node_and_a_deadline_have_their_status() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        call = (await inference(fleet)).Generate(request(), timeout=0.3)
        submit = await agent.expect("submit")
        assert 0 < submit.deadline_ms <= 300
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await agent.expect("cancel")
        call = (await inference(fleet)).Generate(request())
        assert (await agent.expect("submit")).deadline_ms == 0
        agent.call.cancel()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert ("shoal-error-code", "node_lost") in [tuple(pair) for pair in await call.trailing_metadata()]


async def test_tokenize() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        stub = await inference(fleet)
        asking = asyncio.ensure_future(
            stub.Tokenize(inference_pb2.TokenizeRequest(model="auto", prompt=generation_pb2.Prompt(text="hi")))
        )
        call = await agent.expect("call")
        await agent.send(call_result=link_pb2.CallResult(call_id=call.call_id, token_ids=[7, 8]))
        reply = await asking
        assert (list(reply.token_ids), reply.count) == ([7, 8], 2)
        with pytest.raises(aio.AioRpcError) as raised:
            await stub.Tokenize(inference_pb2.TokenizeRequest(model="tiny"))
        assert raised.value.code() is INVALID


async def test_health_follows_what_is_served() -> None:
    async with fake_fleet() as fleet:
        stub: Any = health_pb2_grpc.HealthStub(fleet.channel)
        statuses: list[int] = []

        async def watch() -> None:
            async for reply in stub.Watch(health_pb2.HealthCheckRequest(service="shoal.v1.Inference")):
                statuses.append(reply.status)

        watching = asyncio.ensure_future(watch())
        await eventually("not serving", lambda: statuses == [health_pb2.HealthCheckResponse.NOT_SERVING])
        agent = await fleet.agent()
        await eventually("serving", lambda: statuses[-1] == health_pb2.HealthCheckResponse.SERVING)
        agent.call.cancel()
        await eventually("not serving again", lambda: statuses[-1] == health_pb2.HealthCheckResponse.NOT_SERVING)
        watching.cancel()


async def test_the_fleet_is_listed_shown_and_watched() -> None:
    async with fake_fleet() as fleet:
        stub: Any = fleet_pb2_grpc.FleetStub(fleet.channel)
        await fleet.agent("n2")
        await fleet.agent("n1")
        listed = await stub.ListNodes(fleet_pb2.ListNodesRequest())
        assert [(node.id, node.credits, node.state.model.name) for node in listed.nodes] == [
            ("n1", 2, "tiny"),
            ("n2", 2, "tiny"),
        ]
        assert (await stub.GetNode(fleet_pb2.GetNodeRequest(id="n2"))).node.link == "linked"
        with pytest.raises(aio.AioRpcError) as raised:
            await stub.GetNode(fleet_pb2.GetNodeRequest(id="n3"))
        assert raised.value.code() is MISSING
        watch = stub.WatchNodes(fleet_pb2.WatchNodesRequest())
        assert sorted([(await watch.read()).node.id for _ in range(2)]) == ["n1", "n2"]
        third = await fleet.agent("n3")
        assert (await watch.read()).node.id == "n3"
        third.call.cancel()
        lost = await watch.read()
        assert (lost.node.id, lost.node.link, lost.removed) == ("n3", "lost", False)
        fleet.registry.forget(1e12)
        gone = await watch.read()
        assert (gone.node.id, gone.removed) == ("n3", True)
        watch.cancel()
