"""A controller without a router: a real gRPC server that welcomes agents and lets a test speak to them frame by frame."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from grpc import aio

from shoal.proto.v1 import generation_pb2, link_pb2, link_pb2_grpc

WAIT_S = 10.0


@dataclass(eq=False)
class Peer:
    """One agent's stream as the controller sees it."""

    hello: link_pb2.Hello
    outbox: asyncio.Queue[link_pb2.ControllerFrame | None] = field(default_factory=asyncio.Queue)
    frames: list[link_pb2.AgentFrame] = field(default_factory=list)
    outputs: list[generation_pb2.Output] = field(default_factory=list)
    ended: bool = False
    acknowledges: bool = True
    reads: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, **frame: Any) -> None:
        self.outbox.put_nowait(link_pb2.ControllerFrame(**frame))

    def submit(self, request_id: str, text: str, attempt: int = 0, **fields: Any) -> None:
        request = generation_pb2.GenerationRequest(model="m", prompt=generation_pb2.Prompt(text=text), **fields)
        self.send(submit=link_pb2.Submit(request_id=request_id, attempt=attempt, request=request))

    def of(self, request_id: str) -> list[generation_pb2.Output]:
        return [output for output in self.outputs if output.request_id == request_id]

    def finish_of(self, request_id: str) -> generation_pb2.Finish | None:
        return next((output.finish for output in self.of(request_id) if output.HasField("finish")), None)

    def kinds(self) -> list[str]:
        return [frame.WhichOneof("frame") or "" for frame in self.frames]

    def heartbeats(self) -> list[link_pb2.Heartbeat]:
        return [frame.heartbeat for frame in self.frames if frame.WhichOneof("frame") == "heartbeat"]

    def states(self) -> list[Any]:
        return [frame.state for frame in self.frames if frame.WhichOneof("frame") == "state"]


class FakeController(link_pb2_grpc.AgentLinkServicer):  # type: ignore[misc]
    """`peers` in the order in which they came."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.welcome: link_pb2.Welcome | None = link_pb2.Welcome(
            protocol=1, heartbeat_interval_ms=50, lease_ms=20000, controller_version="test"
        )
        self.goodbye: link_pb2.Goodbye | None = None
        self.port = 0
        self._server: aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def Connect(self, requests: AsyncIterator[link_pb2.AgentFrame], context: Any) -> AsyncIterator[Any]:
        first = await anext(requests)
        assert first.WhichOneof("frame") == "hello"
        if self.goodbye is not None:
            yield link_pb2.ControllerFrame(goodbye=self.goodbye)
            return
        peer = Peer(first.hello)
        peer.reads.set()
        self.peers.append(peer)
        if self.welcome is not None:
            yield link_pb2.ControllerFrame(welcome=self.welcome)
        reader = asyncio.create_task(self._read(peer, requests))
        try:
            while (frame := await peer.outbox.get()) is not None:
                yield frame
        finally:
            reader.cancel()
            peer.ended = True

    async def _read(self, peer: Peer, requests: AsyncIterator[link_pb2.AgentFrame]) -> None:
        with contextlib.suppress(aio.AioRpcError):
            async for frame in requests:
                await peer.reads.wait()
                peer.frames.append(frame)
                match frame.WhichOneof("frame"):
                    case "outputs":
                        peer.outputs.extend(frame.outputs.outputs)
                    case "heartbeat" if peer.acknowledges:
                        peer.send(heartbeat_ack=link_pb2.HeartbeatAck(sequence=frame.heartbeat.sequence))
        peer.outbox.put_nowait(None)

    async def start(self, port: int = 0) -> None:
        self._server = aio.server()
        link_pb2_grpc.add_AgentLinkServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def peer(self, number: int = 1) -> Peer:
        """The n-th agent stream, once it is there."""
        await until(lambda: len(self.peers) >= number)
        return self.peers[number - 1]


async def until(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """The first true value of the condition."""
    async with asyncio.timeout(timeout_s):
        for _ in itertools.count():
            if value := condition():
                return value
            await asyncio.sleep(0.005)
