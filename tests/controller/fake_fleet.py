"""A controller's gRPC side on loopback and agents that are scripts: what the tests of dispatch and links drive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Self

from grpc import aio

from shoal.controller.dispatch import Dispatcher, Limits
from shoal.controller.fleet_service import FleetService
from shoal.controller.grpc_server import GrpcServer, Services
from shoal.controller.inference_service import InferenceService
from shoal.controller.link_service import LinkService
from shoal.controller.registry import Registry
from shoal.controller.request_record import RequestRecord
from shoal.controller.session import Terms
from shoal.proto.v1 import generation_pb2, link_pb2, link_pb2_grpc, node_pb2

WAIT_S = 5.0


def ready_state(model: str = "tiny", slots: int = 2, **fields: Any) -> node_pb2.NodeState:
    """The state of a node that serves; `fields` go into its model."""
    served: dict[str, Any] = {"max_model_len": 512, "vocab_size": 300, "num_parameters": 1000} | fields
    return node_pb2.NodeState(
        phase=node_pb2.NODE_PHASE_READY,
        pid=1,
        engine_pid=2,
        slots=slots,
        model=node_pb2.ServedModel(name=model, **served),
    )


def ids_request(model: str = "tiny", ids: Iterable[int] = (1, 2, 3), **fields: Any) -> generation_pb2.GenerationRequest:
    """A request by ids."""
    prompt = generation_pb2.Prompt(ids=generation_pb2.TokenIds(token_ids=ids))
    return generation_pb2.GenerationRequest(model=model, prompt=prompt, **fields)


def output(
    request_id: str, first_index: int, ids: Iterable[int], finish: int = 0, **fields: Any
) -> generation_pb2.Output:
    """An output with a text delta an id, and a finish if a reason is given."""
    made = generation_pb2.Output(request_id=request_id, first_index=first_index, token_ids=ids, **fields)
    made.deltas.extend(generation_pb2.Delta(kind=generation_pb2.DELTA_KIND_TEXT, text=f"<{i}>") for i in made.token_ids)
    if finish:
        usage = generation_pb2.Usage(prompt_tokens=3, completion_tokens=first_index + len(made.token_ids))
        timings = generation_pb2.Timings(queue_s=0.01, prefill_s=0.02, ttft_s=0.03, decode_s=0.04, total_s=0.07)
        made.finish.CopyFrom(generation_pb2.Finish(reason=finish, usage=usage, timings=timings))
    return made


class Records:
    """A `Recorder` that remembers."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.refusals: list[str] = []

    def record(self, record: RequestRecord) -> None:
        self.records.append(record)

    def refuse(self, reason: str) -> None:
        self.refusals.append(reason)


class FakeAgent:
    """One stream to the controller; the test reads its frames and writes what an agent would."""

    def __init__(self, call: Any, node_id: str) -> None:
        self.call = call
        self.node_id = node_id

    async def hello(self, state: node_pb2.NodeState | None = None, **fields: Any) -> Self:
        hello: dict[str, Any] = {"node_id": self.node_id, "min_protocol": 1, "max_protocol": 1}
        await self.send(hello=link_pb2.Hello(**(hello | fields), state=state or ready_state()))
        return self

    async def send(self, **frame: Any) -> None:
        await self.call.write(link_pb2.AgentFrame(**frame))

    async def outputs(self, *outputs: generation_pb2.Output) -> None:
        await self.send(outputs=link_pb2.OutputBatch(outputs=outputs))

    async def next(self) -> link_pb2.ControllerFrame:
        frame = await asyncio.wait_for(self.call.read(), WAIT_S)
        assert frame is not aio.EOF, "the controller ended the stream"
        assert isinstance(frame, link_pb2.ControllerFrame)
        return frame

    async def expect(self, kind: str) -> Any:
        """The next frame, which must be of this kind."""
        frame = await self.next()
        assert frame.WhichOneof("frame") == kind, frame
        return getattr(frame, kind)

    async def until_end(self) -> list[link_pb2.ControllerFrame]:
        """Everything until the stream ends."""
        frames = []
        with contextlib.suppress(aio.AioRpcError):
            while (frame := await asyncio.wait_for(self.call.read(), WAIT_S)) is not aio.EOF:
                frames.append(frame)
        return frames


class FakeFleet:
    """The controller without HTTP and without a database."""

    def __init__(self, limits: Limits | None = None, terms: Terms | None = None) -> None:
        self.registry = Registry()
        self.records = Records()
        self.links = LinkService(self.registry, terms or Terms(controller_version="test"))
        self.dispatcher = Dispatcher(self.registry, self.links, self.records, limits)
        self.links.attach(self.dispatcher)
        self.stopping = asyncio.Event()
        services = Services(self.links, InferenceService(self.dispatcher), FleetService(self.registry, self.stopping))
        self.server = GrpcServer(services, self.registry)
        self.port = 0
        self.channel: aio.Channel | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def dial(self, node_id: str = "n1") -> FakeAgent:
        """A stream that has said nothing yet."""
        assert self.channel is not None
        stub: Any = link_pb2_grpc.AgentLinkStub(self.channel)
        return FakeAgent(stub.Connect(), node_id)

    async def agent(self, node_id: str = "n1", state: node_pb2.NodeState | None = None) -> FakeAgent:
        """A welcomed agent."""
        agent = await self.dial(node_id).hello(state)
        await agent.expect("welcome")
        return agent


@contextlib.asynccontextmanager
async def fake_fleet(limits: Limits | None = None, terms: Terms | None = None) -> AsyncIterator[FakeFleet]:
    """A running one; everything has ended when the block is left."""
    fleet = FakeFleet(limits, terms)
    fleet.port = await fleet.server.start("127.0.0.1", 0)
    health = asyncio.get_running_loop().create_task(fleet.server.serve())
    # A private set of subchannels: a connection left behind by another test must not be reused.
    async with aio.insecure_channel(fleet.address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        fleet.channel = channel
        try:
            yield fleet
        finally:
            fleet.stopping.set()
            await fleet.links.close()
            health.cancel()
            await fleet.server.stop()


async def eventually(what: str, condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`."""
    for _ in range(int(WAIT_S / 0.01)):
        if value := condition():
            return value
        await asyncio.sleep(0.01)
    raise AssertionError(f"{what} did not happen within {WAIT_S} s")
