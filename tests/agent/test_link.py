"""Link, worker, node and a fake engine together, against a real gRPC server that plays the controller."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal.agent.engine_process import EngineConfig, EngineProcess
from shoal.agent.link import Link, LinkConfig
from shoal.agent.node import Node
from shoal.agent.worker import Worker
from shoal.proto.v1 import generation_pb2, link_pb2, node_pb2
from shoal.runtime import wire

from .fake_controller import FakeController, Peer, until
from .tcp_proxy import tcp_proxy

Command = Callable[[str], tuple[str, ...]]


@dataclass
class Agent:
    engine: EngineProcess
    links: list[Link]
    worker: Worker
    node: Node

    async def leave(self, grace_s: float = 1.0) -> None:
        for link in self.links:
            link.leave("test", grace_s)
        await until(lambda: not any(link.is_linked for link in self.links))


@contextlib.asynccontextmanager
async def agent(command: tuple[str, ...], tmp_path: Path, *addresses: str, draw: float = 0.1) -> AsyncIterator[Agent]:
    worker = Worker()
    node = Node("n1", node_pb2.Hardware(hostname="h"), "m", {"weights": 7}, worker, None, lambda error: None)
    engine = EngineProcess(
        EngineConfig(
            command, wire.Configure(model_dir="/nowhere", served_name="m"), tmp_path / "engine.log", draw=lambda: 0.0
        ),
        node,
    )
    worker.attach(engine)
    links = [Link(LinkConfig(address, "n1", "9.9", draw=lambda: draw), worker, node) for address in addresses]
    node.attach(engine, links, "http://127.0.0.1:1/metrics")
    async with asyncio.TaskGroup() as group:
        group.create_task(engine.run())
        for link in links:
            group.create_task(link.run())
        try:
            yield Agent(engine, links, worker, node)
        finally:
            for link in links:
                link.leave("test", 0.0)
            await engine.close()


async def ready_peer(controller: FakeController, number: int = 1) -> Peer:
    peer = await controller.peer(number)
    await until(lambda: any(s.phase == node_pb2.NODE_PHASE_READY for s in (peer.hello.state, *peer.states())))
    return peer


async def test_hello_state_and_heartbeats(engine_command: Command, controller: FakeController, tmp_path: Path) -> None:
    async with agent(engine_command("serve"), tmp_path, controller.address) as it:
        peer = await ready_peer(controller)
        hello = peer.hello
        assert (hello.node_id, hello.min_protocol, hello.max_protocol) == ("n1", 1, 1)
        assert hello.agent_version == "9.9" and hello.parser_version == wire.PARSER_VERSION
        assert hello.state.pid == os.getpid() and hello.state.hardware.hostname == "h"
        state = peer.states()[-1]
        assert state.engine_pid == it.engine.pid and state.slots == 4
        assert state.model.name == "m" and state.model.max_model_len == 1024 and state.model.serving_digest == "v" * 64
        assert dict(state.planned_bytes) == {"weights": 1000, "kv": 500} == dict(state.allocated_bytes)
        assert state.metrics_url == "http://127.0.0.1:1/metrics"
        beats = await until(lambda: peer.heartbeats() if len(peer.heartbeats()) >= 4 else None)
        assert [beat.sequence for beat in beats] == list(range(1, len(beats) + 1))
        assert not beats[0].HasField("rtt_s") and 0 < beats[-1].rtt_s < 1.0
        await until(lambda: peer.heartbeats()[-1].HasField("stats"))
        assert peer.heartbeats()[-1].stats.kv_blocks_free == 100


async def test_a_request_streams_in_order(engine_command: Command, controller: FakeController, tmp_path: Path) -> None:
    async with agent(engine_command("serve"), tmp_path, controller.address):
        peer = await ready_peer(controller)
        peer.submit("r1", "count", max_tokens=5)
        finish = await until(lambda: peer.finish_of("r1"))
        outputs = peer.of("r1")
        assert [list(output.token_ids) for output in outputs] == [[0], [1], [2], [3], [4]]
        assert [output.first_index for output in outputs] == [0, 1, 2, 3, 4]
        assert "".join(delta.text for output in outputs for delta in output.deltas) == "t0 t1 t2 t3 t4 "
        assert list(outputs[0].prompt.token_ids) == [1, 2, 3]
        assert finish.reason == generation_pb2.FINISH_REASON_LENGTH and finish.usage.completion_tokens == 5


async def test_cancel_frees_the_request(engine_command: Command, controller: FakeController, tmp_path: Path) -> None:
    async with agent(engine_command("serve"), tmp_path, controller.address) as it:
        peer = await ready_peer(controller)
        peer.submit("r1", "wait")
        await until(lambda: any(beat.stats.running == 1 for beat in peer.heartbeats()))
        peer.send(cancel=link_pb2.Cancel(request_id="r1"))
        finish = await until(lambda: peer.finish_of("r1"))
        assert finish.reason == generation_pb2.FINISH_REASON_ABORT
        await until(lambda: peer.heartbeats()[-1].stats.running == 0, 1.0)
        assert it.worker.num_running == 0
        peer.submit("r1", "count", max_tokens=1, attempt=1)
        await until(lambda: peer.finish_of("r1"))


async def test_calls_are_answered_under_their_own_ids(
    engine_command: Command, controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller.address):
        peer = await ready_peer(controller)
        peer.send(call=link_pb2.Call(call_id="a", tokenize=generation_pb2.Prompt(text="hi")))
        peer.send(call=link_pb2.Call(call_id="b", detokenize=generation_pb2.TokenIds(token_ids=[104, 105])))
        results = await until(
            lambda: (
                r
                if len(r := [f.call_result for f in peer.frames if f.WhichOneof("frame") == "call_result"]) == 2
                else None
            )
        )
        assert {result.call_id: (list(result.token_ids), result.text) for result in results} == {
            "a": ([104, 105], ""),
            "b": ([], "hi"),
        }


async def test_a_killed_engine_fails_its_requests_and_comes_back(
    engine_command: Command, controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller.address) as it:
        peer = await ready_peer(controller)
        peer.submit("r1", "wait", n=2)
        peer.submit("r2", "count", max_tokens=1000)
        await until(lambda: len(peer.of("r2")) >= 3)
        first_pid = it.engine.pid
        assert first_pid is not None
        os.kill(first_pid, signal.SIGKILL)
        began = time.monotonic()
        finishes = await until(lambda: (a, b) if (a := peer.finish_of("r1")) and (b := peer.finish_of("r2")) else None)
        assert time.monotonic() - began < 0.5
        for finish in finishes:
            assert finish.reason == generation_pb2.FINISH_REASON_ERROR
            assert finish.error.code == "engine_failed" and finish.error.retryable
        generated = [token for output in peer.of("r2") for token in output.token_ids]
        assert finishes[1].usage.completion_tokens == len(generated) == peer.of("r2")[-1].first_index
        assert {output.choice for output in peer.of("r1")} == {0, 1}
        await until(
            lambda: peer.states()[-1].phase == node_pb2.NODE_PHASE_READY and peer.states()[-1].engine_pid != first_pid
        )
        assert peer.states()[-1].engine_pid == it.engine.pid
        await until(lambda: peer.heartbeats()[-1].engine_restarts == 1)
        peer.submit("r3", "count", max_tokens=2)
        await until(lambda: peer.finish_of("r3"))
        # Counters go on from where the dead engine left them.
        total = len(generated) + 2
        await until(lambda: peer.heartbeats()[-1].stats.generation_tokens >= total - 1)


async def test_a_crash_by_a_request(engine_command: Command, controller: FakeController, tmp_path: Path) -> None:
    async with agent(engine_command("serve"), tmp_path, controller.address):
        peer = await ready_peer(controller)
        peer.submit("r1", "crash")
        finish = await until(lambda: peer.finish_of("r1"))
        assert finish.error.code == "engine_failed"


async def test_no_engine_no_request(engine_command: Command, controller: FakeController, tmp_path: Path) -> None:
    async with agent(engine_command("load_failed"), tmp_path, controller.address):
        peer = await controller.peer()
        state = await until(lambda: next((s for s in peer.states() if s.phase == node_pb2.NODE_PHASE_FAILED), None))
        assert state.detail == "unsupported: no such model" and state.slots == 0 and state.model.name == "m"
        assert dict(state.planned_bytes) == {"weights": 7}
        peer.submit("r1", "count")
        finish = await until(lambda: peer.finish_of("r1"))
        assert finish.error.code == "engine_failed" and finish.error.retryable
        peer.send(call=link_pb2.Call(call_id="a", tokenize=generation_pb2.Prompt(text="hi")))
        await until(lambda: "call_result" in peer.kinds())


async def test_the_end_of_the_link_aborts_its_requests_only(
    engine_command: Command, controller: FakeController, tmp_path: Path
) -> None:
    other = FakeController()
    await other.start()
    try:
        async with agent(engine_command("serve"), tmp_path, controller.address, other.address) as it:
            peer, second = await ready_peer(controller), await ready_peer(other)
            peer.submit("r1", "wait")
            second.submit("r2", "wait")
            await until(lambda: it.worker.num_running == 2)
            await controller.stop()
            await until(lambda: it.worker.num_running == 1)
            await until(lambda: second.heartbeats()[-1].stats.running == 1)
            second.send(cancel=link_pb2.Cancel(request_id="r2"))
            assert await until(lambda: second.finish_of("r2"))
    finally:
        await other.stop()


async def test_it_dials_again_when_the_controller_comes_back(
    engine_command: Command, controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller.address) as it:
        await ready_peer(controller)
        engine_pid, port = it.engine.pid, controller.port
        await controller.stop()
        await until(lambda: not it.links[0].is_linked)
        await controller.start(port)
        peer = await ready_peer(controller, 2)
        assert it.engine.pid == engine_pid, "the engine does not notice"
        peer.submit("r1", "count", max_tokens=1)
        await until(lambda: peer.finish_of("r1"))


async def test_it_waits_for_a_controller_that_is_not_there_yet(engine_command: Command, tmp_path: Path) -> None:
    late = FakeController()
    await late.start()
    port = late.port
    await late.stop()
    async with agent(engine_command("serve"), tmp_path, f"127.0.0.1:{port}") as it:
        await asyncio.sleep(0.3)
        assert not it.links[0].is_linked
        await late.start(port)
        try:
            await ready_peer(late)
        finally:
            await late.stop()


async def test_a_silent_controller_is_left_when_its_lease_is_over(
    engine_command: Command, controller: FakeController, tmp_path: Path
) -> None:
    controller.welcome = link_pb2.Welcome(protocol=1, heartbeat_interval_ms=50, lease_ms=1000)
    async with agent(engine_command("serve"), tmp_path, controller.address):
        peer = await controller.peer()
        peer.acknowledges = False
        await controller.peer(2)
        await until(lambda: peer.ended)


async def test_a_dead_connection_is_replaced(
    engine_command: Command, controller: FakeController, tmp_path: Path
) -> None:
    """Nobody ends it, nothing passes: only a new connection helps, and the old requests are not waited for."""
    controller.welcome = link_pb2.Welcome(protocol=1, heartbeat_interval_ms=50, lease_ms=1500)
    async with (
        tcp_proxy(controller.port) as proxy,
        agent(engine_command("serve"), tmp_path, f"127.0.0.1:{proxy.port}") as it,
    ):
        peer = await ready_peer(controller)
        peer.submit("r1", "wait")
        await until(lambda: it.worker.num_running == 1)
        proxy.silence()
        await ready_peer(controller, 2)
        assert proxy.num_connections == 2 and it.worker.num_running == 0
        controller.peers[1].submit("r2", "count", max_tokens=1)
        await until(lambda: controller.peers[1].finish_of("r2"))


async def test_a_goodbye_that_forbids_to_come_back(
    engine_command: Command, controller: FakeController, tmp_path: Path
) -> None:
    controller.goodbye = link_pb2.Goodbye(code="unsupported_protocol", message="1..1 is too old", retry=False)
    async with agent(engine_command("serve"), tmp_path, controller.address) as it:
        await until(lambda: it.links[0].refusal)
        assert it.links[0].refusal == "unsupported_protocol: 1..1 is too old"
        assert not controller.peers


async def test_a_protocol_that_was_not_offered(
    engine_command: Command, controller: FakeController, tmp_path: Path
) -> None:
    controller.welcome = link_pb2.Welcome(protocol=2, heartbeat_interval_ms=50, lease_ms=200)
    async with agent(engine_command("serve"), tmp_path, controller.address) as it:
        peer = await controller.peer()
        await until(lambda: peer.ended)
        assert not it.links[0].is_linked


async def test_a_controller_that_does_not_read_loses_its_stream(
    engine_command: Command, controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller.address) as it:
        peer = await ready_peer(controller)
        peer.reads.clear()
        peer.submit("r1", "flood 1000000", max_tokens=1)
        again = await controller.peer(2)
        assert it.worker.num_running == 0, "what it had asked for is aborted"
        again.submit("r2", "count", max_tokens=1)
        await until(lambda: again.finish_of("r2"))
        peer.reads.set()


async def test_leaving_lets_what_runs_end(engine_command: Command, controller: FakeController, tmp_path: Path) -> None:
    async with agent(engine_command("serve"), tmp_path, controller.address) as it:
        peer = await ready_peer(controller)
        peer.submit("r1", "count", max_tokens=10)
        await until(lambda: peer.of("r1"))
        leaving = asyncio.ensure_future(it.leave())
        await until(lambda: "leaving" in peer.kinds())
        peer.submit("r2", "count", max_tokens=1)
        await leaving
        await until(lambda: peer.ended)
        finish = peer.finish_of("r1")
        assert finish is not None and finish.reason == generation_pb2.FINISH_REASON_LENGTH
        refused = peer.finish_of("r2")
        assert refused is not None and refused.error.code == "node_leaving" and refused.error.retryable


async def test_leaving_does_not_wait_for_ever(
    engine_command: Command, controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller.address) as it:
        peer = await ready_peer(controller)
        peer.submit("r1", "wait")
        await until(lambda: it.worker.num_running == 1)
        began = time.monotonic()
        await it.leave(grace_s=0.3)
        await until(lambda: it.worker.num_running == 0)
        assert 0.25 < time.monotonic() - began < 2.0


@pytest.mark.parametrize("num_requests", [100])
async def test_many_requests_share_few_frames(
    num_requests: int, engine_command: Command, controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller.address):
        peer = await ready_peer(controller)
        for index in range(num_requests):
            peer.submit(f"r{index}", "count", max_tokens=4)
        await until(lambda: all(peer.finish_of(f"r{index}") for index in range(num_requests)))
        num_frames = peer.kinds().count("outputs")
        assert len(peer.outputs) == num_requests * 4
        assert num_frames < num_requests, "outputs of one flush travel together"
