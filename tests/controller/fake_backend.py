"""Stands where the fleet is: a backend whose answers are scripts, and a real server or client round it."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from shoal.controller.backend import GenerateOptions, OutputStream
from shoal.controller.errors import BadRequest, ControllerError, NotFound
from shoal.controller.gateway import GatewayConfig, build_app
from shoal.controller.http_server import serve
from shoal.controller.request_record import RequestRecord
from shoal.proto.v1 import fleet_pb2, generation_pb2, inference_pb2, node_pb2

Output = generation_pb2.Output
Step = list[Output] | float | Exception
"""One flush; or a pause in seconds; or how it ends."""

TEXT, REASONING = generation_pb2.DELTA_KIND_TEXT, generation_pb2.DELTA_KIND_REASONING
CALL, ARGUMENTS = generation_pb2.DELTA_KIND_TOOL_CALL_START, generation_pb2.DELTA_KIND_TOOL_CALL_ARGUMENTS
STOP, LENGTH, TOOL_CALLS = (
    generation_pb2.FINISH_REASON_STOP,
    generation_pb2.FINISH_REASON_LENGTH,
    generation_pb2.FINISH_REASON_TOOL_CALLS,
)
STOP_ID = 256


def delta(kind: generation_pb2.DeltaKind, text: str = "", **fields: Any) -> generation_pb2.Delta:
    return generation_pb2.Delta(kind=kind, text=text, **fields)


def logprob(token_id: int, value: float | None, top: int = 0) -> generation_pb2.TokenLogprob:
    """The token of byte `token_id`; alternatives are the bytes after it, each half as likely."""
    entry = generation_pb2.TokenLogprob(token_id=token_id, token=token_bytes(token_id))
    if value is not None:
        entry.logprob = value
        for rank in range(top):
            alternative = (token_id + rank) % 256
            entry.top.add(token_id=alternative, token=token_bytes(alternative), logprob=value - rank * math.log(2))
    return entry


def token_bytes(token_id: int) -> bytes:
    return b"<|im_end|>" if token_id == STOP_ID else bytes([token_id])


def finish(reason: generation_pb2.FinishReason, prompt_tokens: int, completion_tokens: int) -> generation_pb2.Finish:
    return generation_pb2.Finish(
        reason=reason,
        usage=generation_pb2.Usage(
            prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cached_tokens=prompt_tokens // 2
        ),
        timings=generation_pb2.Timings(queue_s=0.25, prefill_s=0.5, ttft_s=0.75, decode_s=1.0, total_s=2.0),
    )


def byte_answer(
    request: generation_pb2.GenerationRequest, text: str, *, choice: int = 0, reason: generation_pb2.FinishReason = STOP
) -> list[Step]:
    """One token a byte, one flush a token, a stop id at the end: what a byte-level model would send."""
    prompt_ids = ids_of(request.prompt)
    decoder = codecs.getincrementaldecoder("utf-8")()
    top = request.logprobs
    ids = [*text.encode(), STOP_ID]
    steps: list[Step] = []
    for index, token_id in enumerate(ids):
        out = Output(choice=choice, first_index=index, token_ids=[token_id])
        piece = decoder.decode(bytes([token_id])) if token_id != STOP_ID else ""
        if piece:
            out.deltas.append(delta(TEXT, piece))
        if request.HasField("logprobs"):
            out.logprobs.append(logprob(token_id, -0.5 - index, top))
        if index == 0 and choice == 0:
            out.prompt.token_ids.extend(prompt_ids)
            if request.echo:
                out.prompt.text = bytes(prompt_ids).decode("utf-8", "replace")
            if request.HasField("prompt_logprobs"):
                values = [None, *(-float(i) for i in range(1, len(prompt_ids)))]
                out.prompt.logprobs.extend(logprob(i, v, top) for i, v in zip(prompt_ids, values, strict=True))
        if index == len(ids) - 1:
            out.finish.CopyFrom(finish(reason, len(prompt_ids), len(ids)))
        steps.append([out])
    return steps


def ids_of(prompt: generation_pb2.Prompt) -> list[int]:
    if prompt.HasField("ids"):
        return list(prompt.ids.token_ids)
    return list(prompt.text.encode() if prompt.HasField("text") else prompt.conversation.messages_json)


class ScriptedStream:
    """Implements `OutputStream`."""

    def __init__(self, request_id: str, node_id: str, steps: Sequence[Step]) -> None:
        self.request_id, self.node_id, self.attempts = request_id, node_id, 1
        self.closed = asyncio.Event()
        self._steps = steps

    async def __aiter__(self) -> AsyncIterator[list[Output]]:
        for step in self._steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield step

    async def aclose(self) -> None:
        self.closed.set()


Script = Callable[[generation_pb2.GenerationRequest, GenerateOptions], list[Step]]


@dataclass
class FakeBackend:
    """Implements `Backend`. `script` decides on every answer; what was asked and what ran is kept."""

    script: Script = lambda request, options: byte_answer(request, "Hello")
    refusal: ControllerError | None = None
    requests: list[generation_pb2.GenerationRequest] = field(default_factory=list)
    options: list[GenerateOptions] = field(default_factory=list)
    streams: list[ScriptedStream] = field(default_factory=list)
    fleet: list[fleet_pb2.Node] = field(default_factory=lambda: [ready_node("node-1"), ready_node("node-2")])

    async def generate(self, request: generation_pb2.GenerationRequest, options: GenerateOptions) -> OutputStream:
        self.requests.append(request)
        self.options.append(options)
        if self.refusal is not None:
            raise self.refusal
        if request.model not in ("auto", "tiny"):
            raise NotFound("no such model", param="model", code="model_not_found")
        stream = ScriptedStream(options.request_id, options.node_id or "node-1", self.script(request, options))
        self.streams.append(stream)
        return stream

    async def tokenize(self, model: str, prompt: generation_pb2.Prompt) -> list[int]:
        return ids_of(prompt)

    async def detokenize(self, model: str, token_ids: list[int]) -> str:
        if max(token_ids) > 255:
            raise BadRequest("no such id", param="tokens")
        return bytes(token_ids).decode("utf-8", "replace")

    def models(self) -> list[inference_pb2.Model]:
        fields: dict[str, Any] = {"max_model_len": 512, "size": "tiny", "format": "int8", "capabilities": ["tools"]}
        return [inference_pb2.Model(id=name, **fields) for name in ("tiny", "auto")] if self.fleet else []

    def nodes(self) -> list[fleet_pb2.Node]:
        return self.fleet


def ready_node(node_id: str, **fields: Any) -> fleet_pb2.Node:
    node = fleet_pb2.Node(
        id=node_id,
        link="linked",
        state=node_pb2.NodeState(
            phase=node_pb2.NODE_PHASE_READY,
            pid=100,
            engine_pid=101,
            slots=4,
            model=node_pb2.ServedModel(
                **{"name": "tiny", "size": "tiny", "format": "int8", "backend": "cpu", "isa": "avx2"},
                source_digest="s1",
                serving_digest="s2",
            ),
            planned_bytes={"weights": 3_000_000, "kv": 1_000_000},
        ),
        credits=3,
        in_flight=1,
        lease_age_s=0.2,
        resident_bytes=5_000_000,
        **fields,
    )
    node.stats.running = 1
    node.stats.generation_tokens = 500
    return node


class FakeLog:
    """Implements `RequestLog`."""

    def __init__(self, *records: RequestRecord) -> None:
        self.records = list(records)

    async def recent(self, limit: int) -> list[RequestRecord]:
        return self.records[:limit]

    async def get(self, request_id: str) -> RequestRecord | None:
        return next((record for record in self.records if record.id == request_id), None)


class FakeMetrics:
    """Implements `MetricsRenderer`."""

    def render(self, accept: str) -> tuple[bytes, str]:
        return f"# accept {accept}\n".encode(), "text/plain; version=1.0.0; charset=utf-8"


def application(backend: FakeBackend, log: FakeLog | None = None) -> Any:
    return build_app(backend, FakeMetrics(), log or FakeLog(), GatewayConfig("1.2.3"))


@contextlib.asynccontextmanager
async def served(backend: FakeBackend, log: FakeLog | None = None) -> AsyncIterator[str]:
    """The base URL of a real server on loopback."""
    bound: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    app = application(backend, log)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(serve(app, "127.0.0.1", 0, lambda host, port: bound.set_result((host, port))))
        host, port = await bound
        try:
            yield f"http://{host}:{port}"
        finally:
            task.cancel()


@contextlib.asynccontextmanager
async def connected(backend: FakeBackend, log: FakeLog | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    """A client in the same process: no socket between."""
    transport = httpx2.ASGITransport(application(backend, log), raise_app_exceptions=True)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


def events_of(text: str) -> list[Any]:
    """The data of every event; `[DONE]` as None. Every event stands alone and is complete."""
    import json

    assert text.endswith("\n\n")
    datas = [part.removeprefix("data: ") for part in text.removesuffix("\n\n").split("\n\n")]
    return [None if data == "[DONE]" else json.loads(data) for data in datas]
