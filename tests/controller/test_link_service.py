"""Links over real gRPC streams: registration, leases, duplicates, the end."""

from __future__ import annotations

import asyncio

import grpc
from shoal_fake_fleet import eventually, fake_fleet, ids_request, output, ready_state

from shoal.controller.backend import GenerateOptions
from shoal.controller.session import Terms
from shoal.proto.v1 import generation_pb2, link_pb2, node_pb2

STOP = generation_pb2.FINISH_REASON_STOP


async def test_a_node_that_registers_again_replaces_its_older_stream() -> None:
    async with fake_fleet() as fleet:
        old = await fleet.agent("n1")
        stream = await fleet.dispatcher.generate(ids_request(), GenerateOptions("r1"))
        await old.expect("submit")
        new = await fleet.agent("n1", ready_state(slots=5))
        frames = await old.until_end()
        assert frames[-1].goodbye.code == "duplicate_node" and not frames[-1].goodbye.retry
        try:
            await anext(stream)
            raise AssertionError("the stream went on")
        except Exception as error:
            assert getattr(error, "code", "") == "node_lost"
        entry = fleet.registry.get("n1")
        assert entry is not None and entry.credits == 5
        again = await fleet.dispatcher.generate(ids_request(), GenerateOptions("r2"))
        await new.expect("submit")
        await new.outputs(output("r2", 0, [1], STOP))
        assert [o async for outputs in again for o in outputs]


async def test_a_silent_node_is_lost_when_its_lease_ends() -> None:
    terms = Terms(heartbeat_interval_s=0.1, lease_s=0.3)
    async with fake_fleet(terms=terms) as fleet:
        agent = await fleet.agent("n1")
        for sequence in range(1, 5):
            await asyncio.sleep(0.1)
            await agent.send(heartbeat=link_pb2.Heartbeat(sequence=sequence, rtt_s=0.001))
            assert (await agent.expect("heartbeat_ack")).sequence == sequence
        node = fleet.dispatcher.nodes()[0]
        assert node.link == "linked" and node.rtt_s == 0.001 and node.lease_age_s < 0.3
        frames = await agent.until_end()
        assert frames[-1].goodbye.code == "lease_expired" and frames[-1].goodbye.retry
        assert await agent.call.code() is grpc.StatusCode.ABORTED
        lost = fleet.dispatcher.nodes()[0]
        assert lost.link == "lost" and not lost.HasField("rtt_s") and lost.credits == 0


async def test_protocols_that_do_not_meet_and_bad_hellos_are_told_so() -> None:
    async with fake_fleet() as fleet:
        newer = await fleet.dial("n1").hello(min_protocol=2, max_protocol=4)
        (frame,) = await newer.until_end()
        assert frame.goodbye.code == "unsupported_protocol"
        mute = fleet.dial("n2")
        await mute.send(heartbeat=link_pb2.Heartbeat(sequence=1))
        (frame,) = await mute.until_end()
        assert frame.goodbye.code == "bad_hello"
        assert len(fleet.registry) == 0


async def test_a_node_whose_engine_loads_fails_and_comes_back() -> None:
    async with fake_fleet() as fleet:
        agent = await fleet.agent("n1", node_pb2.NodeState(phase=node_pb2.NODE_PHASE_LOADING))
        assert fleet.dispatcher.models() == []
        await agent.send(state=ready_state())
        await eventually("a model", fleet.dispatcher.models)
        assert [model.id for model in fleet.dispatcher.models()] == ["tiny", "auto"]
        stream = await fleet.dispatcher.generate(ids_request(), GenerateOptions("r1"))
        await agent.expect("submit")
        await agent.send(state=node_pb2.NodeState(phase=node_pb2.NODE_PHASE_FAILED))
        await eventually("no model", lambda: not fleet.dispatcher.models())
        # The engine's end is told per request, by the agent; the node's phase alone ends nothing.
        failed = output("r1", 0, [], generation_pb2.FINISH_REASON_ERROR)
        failed.finish.error.code, failed.finish.error.retryable = "engine_failed", True
        await agent.outputs(failed)
        try:
            await anext(stream)
            raise AssertionError("the stream went on")
        except Exception as error:
            assert getattr(error, "code", "") == "engine_failed"


async def test_a_leaving_node_ends_what_it_has_and_gets_nothing_new() -> None:
    async with fake_fleet() as fleet:
        leaving, staying = await fleet.agent("n1"), await fleet.agent("n2")
        stream = await fleet.dispatcher.generate(ids_request(), GenerateOptions("r1", node_id="n1"))
        await leaving.expect("submit")
        await leaving.send(leaving=link_pb2.Leaving(reason="update"))
        entry = fleet.registry.get("n1")
        assert entry is not None
        await eventually("no more credits there", lambda: entry.credits == 0)
        for number in (2, 3):
            await fleet.dispatcher.generate(ids_request(), GenerateOptions(f"r{number}"))
            await staying.expect("submit")
        await leaving.outputs(output("r1", 0, [1], STOP))
        assert [list(o.token_ids) async for outputs in stream for o in outputs] == [[1]]


async def test_the_end_says_goodbye_to_every_agent() -> None:
    async with fake_fleet() as fleet:
        agents = [await fleet.agent(f"n{number}") for number in range(3)]
        closing = asyncio.ensure_future(fleet.links.close())
        for agent in agents:
            frames = await agent.until_end()
            assert frames[-1].goodbye.code == "shutting_down" and frames[-1].goodbye.retry
        await closing
        assert all(node.link == "lost" for node in fleet.dispatcher.nodes())


async def test_an_agent_that_comes_while_the_controller_ends_is_sent_away() -> None:
    async with fake_fleet() as fleet:
        await fleet.links.close()
        late = fleet.dial("n1")
        (frame,) = await late.until_end()
        assert frame.goodbye.code == "shutting_down"
        assert len(fleet.registry) == 0
