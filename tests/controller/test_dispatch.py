"""Dispatch over real gRPC streams on loopback: every way in which a request ends, and that it ends once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from shoal_fake_fleet import FakeAgent, FakeFleet, eventually, fake_fleet, ids_request, output, ready_state

from shoal.controller.answer import MAX_BUFFERED_OUTPUTS
from shoal.controller.backend import GenerateOptions
from shoal.controller.dispatch import Limits
from shoal.controller.errors import (
    BadRequest,
    DeadlineExceeded,
    EngineFailed,
    NoCapacity,
    NodeLost,
    NotFound,
    Unavailable,
)
from shoal.proto.v1 import generation_pb2, link_pb2

STOP, ABORT, ERROR = (
    generation_pb2.FINISH_REASON_STOP,
    generation_pb2.FINISH_REASON_ABORT,
    generation_pb2.FINISH_REASON_ERROR,
)


async def collect(stream: Any) -> list[generation_pb2.Output]:
    return [item async for outputs in stream for item in outputs]


async def start(fleet: FakeFleet, agent: FakeAgent, request_id: str = "r1", **fields: Any) -> Any:
    """A request that has reached the agent."""
    options = GenerateOptions(request_id, timeout_s=fields.pop("timeout_s", None))
    stream = await fleet.dispatcher.generate(ids_request(**fields), options)
    submit = await agent.expect("submit")
    assert submit.request_id == request_id
    return stream


async def test_an_answer_arrives_in_order_and_is_recorded_once() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        stream = await start(fleet, agent, model="auto")
        assert (stream.node_id, stream.attempts) == ("n1", 1)
        assert fleet.registry.get("n1").credits == 1  # type: ignore[union-attr]
        await agent.outputs(output("r1", 0, [5], prompt=generation_pb2.PromptOutput(token_ids=[1, 2, 3])))
        await agent.outputs(output("r1", 1, [6, 7]), output("r1", 3, [8], STOP))
        outputs = await collect(stream)
        assert [i for item in outputs for i in item.token_ids] == [5, 6, 7, 8]
        assert "".join(d.text for item in outputs for d in item.deltas) == "<5><6><7><8>"
        await stream.aclose()
        (record,) = fleet.records.records
        assert (record.model, record.node, record.finish_reason) == ("tiny", "n1", "stop")
        assert (record.prompt_tokens, record.completion_tokens) == (3, 4)
        assert record.decode_s == pytest.approx(0.04) and record.ttft_s is not None and record.ttft_s > 0
        assert fleet.registry.get("n1").credits == 2  # type: ignore[union-attr]


async def test_closing_the_stream_cancels_once_and_the_credit_returns_with_the_confirmation() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        stream = await start(fleet, agent)
        await agent.outputs(output("r1", 0, [5]))
        async for _ in stream:
            break
        await stream.aclose()
        await stream.aclose()
        cancel = await agent.expect("cancel")
        assert cancel.request_id == "r1"
        assert fleet.registry.get("n1").credits == 1  # type: ignore[union-attr]
        await agent.outputs(output("r1", 1, [], ABORT))
        await eventually("the credit", lambda: fleet.registry.get("n1").credits == 2)  # type: ignore[union-attr]
        (record,) = fleet.records.records
        assert (record.finish_reason, record.completion_tokens, record.prompt_tokens) == ("abort", 1, 3)
        await agent.send(heartbeat=link_pb2.Heartbeat(sequence=1))
        await agent.expect("heartbeat_ack")  # and no second cancel before it


async def test_an_agent_that_never_confirms_a_cancel_does_not_hold_its_credit_for_ever() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        stream = await start(fleet, agent)
        await stream.aclose()
        await agent.expect("cancel")
        await eventually("the credit", lambda: fleet.registry.get("n1").credits == 2)  # type: ignore[union-attr]
        await agent.outputs(output("r1", 0, [5], STOP))
        await agent.send(heartbeat=link_pb2.Heartbeat(sequence=1))
        await agent.expect("heartbeat_ack")
        assert [record.finish_reason for record in fleet.records.records] == ["abort"]


async def test_a_lost_node_fails_its_streams_after_what_had_arrived() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        stream = await start(fleet, agent)
        await agent.outputs(output("r1", 0, [5]))
        assert [list(o.token_ids) for o in await anext(stream)] == [[5]]
        agent.call.cancel()
        with pytest.raises(NodeLost) as raised:
            await collect(stream)
        assert raised.value.code == "node_lost" and raised.value.retryable
        (record,) = fleet.records.records
        assert (record.finish_reason, record.error_code, record.completion_tokens) == ("error", "node_lost", 1)
        assert fleet.dispatcher.nodes()[0].link == "lost"
        with pytest.raises(Unavailable) as refused:
            await fleet.dispatcher.generate(ids_request(), GenerateOptions("r2"))
        assert refused.value.retry_after_s


@pytest.mark.parametrize(
    ("code", "retryable", "kind"),
    [
        ("engine_failed", True, EngineFailed),
        ("context_length_exceeded", False, BadRequest),
        ("queue_full", True, Unavailable),
        ("runtime_fault", False, EngineFailed),
    ],
)
async def test_what_the_engine_refuses(code: str, retryable: bool, kind: type[Exception]) -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        stream = await start(fleet, agent, n=2)
        refused = output("r1", 0, [], ERROR)
        refused.finish.error.CopyFrom(
            generation_pb2.Error(code=code, message="no", param="prompt", retryable=retryable)
        )
        await agent.outputs(refused)
        with pytest.raises(kind) as raised:
            await collect(stream)
        assert raised.value.code == code  # type: ignore[attr-defined]
        assert fleet.registry.get("n1").credits == 2  # type: ignore[union-attr]
        assert fleet.records.records[0].error_code == code


async def test_repeated_outputs_are_dropped_and_a_gap_fails_the_stream_and_cancels() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        stream = await start(fleet, agent)
        await agent.outputs(
            output("r1", 0, [5, 6]), output("r1", 0, [5, 6]), output("r1", 1, [6]), output("r1", 2, [7])
        )
        await agent.outputs(output("r1", 4, [9]))
        got: list[int] = []
        with pytest.raises(EngineFailed):
            async for outputs in stream:
                got += [i for item in outputs for i in item.token_ids]
        assert got == [5, 6, 7]
        assert (await agent.expect("cancel")).request_id == "r1"


async def test_a_deadline_ends_the_stream_and_cancels() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        options = GenerateOptions("r1", timeout_s=0.2)
        stream = await fleet.dispatcher.generate(ids_request(), options)
        submit = await agent.expect("submit")
        assert 0 < submit.deadline_ms <= 200
        with pytest.raises(DeadlineExceeded):
            await collect(stream)
        await agent.expect("cancel")
        await agent.outputs(output("r1", 0, [], ABORT))
        await eventually("the record", lambda: fleet.records.records)
        assert fleet.records.records[0].finish_reason == "deadline"


async def test_waiting_is_first_come_first_served_and_bounded() -> None:
    async with fake_fleet(Limits(max_waiting=2, max_wait_s=30)) as fleet:
        agent = await fleet.agent(state=ready_state(slots=1))
        first = await start(fleet, agent, "r1")
        waiting = [
            asyncio.ensure_future(fleet.dispatcher.generate(ids_request(), GenerateOptions(name)))
            for name in ("r2", "r3")
        ]
        await eventually("two to wait", lambda: fleet.dispatcher.num_waiting == 2)
        with pytest.raises(NoCapacity) as refused:
            await fleet.dispatcher.generate(ids_request(), GenerateOptions("r4"))
        assert refused.value.code == "queue_full" and refused.value.retry_after_s
        assert fleet.records.refusals == ["queue_full"]
        for number, stream in enumerate([first, *waiting], start=1):
            opened = stream if number == 1 else await stream
            if number > 1:
                assert (await agent.expect("submit")).request_id == f"r{number}"
            await agent.outputs(output(f"r{number}", 0, [1], STOP))
            assert len(await collect(opened)) == 1
        assert fleet.dispatcher.num_waiting == 0
        assert [record.id for record in fleet.records.records] == ["r1", "r2", "r3"]


async def test_a_client_that_leaves_the_queue_takes_no_credit() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent(state=ready_state(slots=1))
        stream = await start(fleet, agent, "r1")
        waiting = asyncio.ensure_future(fleet.dispatcher.generate(ids_request(), GenerateOptions("r2")))
        await eventually("one to wait", lambda: fleet.dispatcher.num_waiting == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await agent.outputs(output("r1", 0, [1], STOP))
        await collect(stream)
        assert fleet.registry.get("n1").credits == 1  # type: ignore[union-attr]
        assert [(r.id, r.node, r.finish_reason) for r in fleet.records.records] == [
            ("r2", "controller", "abort"),
            ("r1", "n1", "stop"),
        ]


async def test_patience_and_deadlines_end_in_the_queue_too() -> None:
    async with fake_fleet(Limits(max_wait_s=0.1)) as fleet:
        agent = await fleet.agent(state=ready_state(slots=1))
        stream = await start(fleet, agent, "r1")
        with pytest.raises(NoCapacity):
            await fleet.dispatcher.generate(ids_request(), GenerateOptions("r2"))
        with pytest.raises(DeadlineExceeded):
            await fleet.dispatcher.generate(ids_request(), GenerateOptions("r3", timeout_s=0.05))
        with pytest.raises(DeadlineExceeded):
            await fleet.dispatcher.generate(ids_request(), GenerateOptions("r4", timeout_s=0))
        assert fleet.records.refusals == ["no_capacity", "deadline_exceeded"]
        await stream.aclose()


async def test_requests_that_the_fleet_cannot_take() -> None:
    async with fake_fleet() as fleet:
        with pytest.raises(Unavailable):
            await fleet.dispatcher.generate(ids_request("auto"), GenerateOptions("r1"))
        agent = await fleet.agent()
        for request, node_id, kind, code, param in (
            (ids_request("other"), None, NotFound, "model_not_found", "model"),
            (ids_request(), "n9", NotFound, "node_not_found", None),
            (ids_request("other"), "n1", NotFound, "model_not_found", "model"),
            (ids_request(ids=[1, 300]), None, BadRequest, "invalid_token_id", "prompt[1]"),
            (ids_request(n=129), None, BadRequest, "invalid_request", "n"),
        ):
            with pytest.raises(kind) as raised:
                await fleet.dispatcher.generate(request, GenerateOptions("r1", node_id))
            assert (raised.value.code, raised.value.param) == (code, param)
        stream = await start(fleet, agent, "r1")
        with pytest.raises(BadRequest) as twice:
            await fleet.dispatcher.generate(ids_request(), GenerateOptions("r1"))
        assert twice.value.code == "duplicate_request"
        await stream.aclose()


async def test_choices_spend_a_credit_each_and_end_together() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent(state=ready_state(slots=3))
        stream = await start(fleet, agent, n=2)
        assert fleet.registry.get("n1").credits == 1  # type: ignore[union-attr]
        await agent.outputs(output("r1", 0, [1], STOP, choice=1), output("r1", 0, [2, 3], choice=0))
        await agent.outputs(output("r1", 2, [4], STOP, choice=0))
        assert [(o.choice, list(o.token_ids)) for o in await collect(stream)] == [(1, [1]), (0, [2, 3]), (0, [4])]
        assert fleet.registry.get("n1").credits == 3  # type: ignore[union-attr]
        assert fleet.records.records[0].completion_tokens == 4


async def test_a_client_that_does_not_read_is_cancelled() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        stream = await start(fleet, agent)
        for first in range(0, MAX_BUFFERED_OUTPUTS + 512, 512):
            await agent.outputs(*(output("r1", i, [1]) for i in range(first, first + 512)))
        assert (await agent.expect("cancel")).request_id == "r1"
        with pytest.raises(NoCapacity) as raised:
            await collect(stream)
        assert raised.value.code == "slow_client"


async def test_twenty_requests_on_two_nodes_are_spread() -> None:
    async with fake_fleet() as fleet:
        agents = [await fleet.agent(f"n{i}", ready_state(slots=4)) for i in (1, 2)]

        async def serve(agent: FakeAgent, count: int) -> None:
            for _ in range(count):
                submit = await agent.expect("submit")
                await agent.outputs(output(submit.request_id, 0, [1], STOP))

        async def ask(number: int) -> str:
            stream = await fleet.dispatcher.generate(ids_request(), GenerateOptions(f"r{number}"))
            await collect(stream)
            return str(stream.node_id)

        servers = [asyncio.ensure_future(serve(agent, 10)) for agent in agents]
        nodes = await asyncio.gather(*(ask(number) for number in range(20)))
        for server in servers:
            server.cancel()
        assert nodes.count("n1") + nodes.count("n2") == 20
        assert min(nodes.count("n1"), nodes.count("n2")) >= 5
        assert len(fleet.records.records) == 20


async def test_calls_are_answered_refused_or_lost() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent()
        asking = asyncio.ensure_future(fleet.dispatcher.tokenize("auto", generation_pb2.Prompt(text="hi")))
        call = await agent.expect("call")
        assert call.tokenize.text == "hi"
        await agent.send(call_result=link_pb2.CallResult(call_id=call.call_id, token_ids=[7, 8]))
        assert await asking == [7, 8]
        with pytest.raises(BadRequest) as raised:
            await fleet.dispatcher.detokenize("tiny", [1, 999])
        assert raised.value.param == "tokens[1]"
        asking_back = asyncio.ensure_future(fleet.dispatcher.detokenize("tiny", [7, 8]))
        await agent.expect("call")
        agent.call.cancel()
        with pytest.raises(NodeLost):
            await asking_back


async def test_a_prompt_goes_where_its_context_fits_or_to_the_engine_that_says_it_does_not() -> None:
    async with fake_fleet() as fleet:
        short = await fleet.agent("a", ready_state(max_model_len=8))
        long = await fleet.agent("b", ready_state(max_model_len=64))
        for number in (1, 2):
            await start(fleet, long, f"r{number}", max_tokens=30)
        waiting = asyncio.ensure_future(fleet.dispatcher.generate(ids_request(max_tokens=30), GenerateOptions("r3")))
        await eventually("one to wait for the long context", lambda: fleet.dispatcher.num_waiting == 1)
        await start(fleet, short, "r4", max_tokens=4)
        await start(fleet, short, "r5", max_tokens=1000)
        waiting.cancel()
