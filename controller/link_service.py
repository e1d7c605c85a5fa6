"""The streams of the agents: `AgentLink` of proto/v1/link.proto. Drives `session.py`, one `_Stream` an agent.

A stream has one reader (the handler itself), one writer and one timer. A pending `read` is never cancelled: gRPC would leak its
operation. Instead the call is ended, which ends the read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import Any, Protocol

import grpc
from grpc import aio

from shoal.proto.v1 import link_pb2, link_pb2_grpc

from . import session as s
from .registry import FleetFull, Registry

MAX_OUTBOX_FRAMES = 8192
MAX_OUTBOX_BYTES = 64 * 1024 * 1024
"""Frames and bytes that may wait for an agent which does not read; beyond either its stream is given up."""

GOODBYE_TIMEOUT_S = 0.5
"""How long a Goodbye may take to go out, and then the agent to end its side, before the call is ended from here."""

log = logging.getLogger(__name__)

_Context = Any
"""grpc.aio's servicer context; its published type lacks what the stream-stream case has."""


class LinkEvents(Protocol):
    """Who hears what agents say. Called from the event loop; must not block."""

    def on_outputs(self, node_id: str, generation: int, batch: link_pb2.OutputBatch) -> None: ...

    def on_answer(self, node_id: str, generation: int, result: link_pb2.CallResult) -> None: ...

    def on_node_lost(self, node_id: str, generation: int) -> None: ...

    def pump(self) -> None: ...


class LinkService(link_pb2_grpc.AgentLinkServicer):
    """All streams. Implements `dispatch.Links`; `attach` names who hears."""

    def __init__(self, registry: Registry, terms: s.Terms) -> None:
        self.registry = registry
        self.terms = terms
        self.events: LinkEvents | None = None
        self._streams: dict[str, _Stream] = {}
        self._open: set[_Stream] = set()
        self.is_closing = False

    def attach(self, events: LinkEvents) -> None:
        """Dispatch sends through this service and hears from it: neither can be built with the other."""
        self.events = events

    def send(self, node_id: str, generation: int, frame: link_pb2.ControllerFrame) -> bool:
        """See `dispatch.Links.send`."""
        stream = self._streams.get(node_id)
        if stream is None or stream.generation != generation or stream.is_closed:
            return False
        return stream.put(frame)

    async def Connect(self, request_iterator: Any, context: _Context) -> None:
        """One agent's stream, from open to end."""
        stream = _Stream(self, context)
        self._open.add(stream)
        try:
            await stream.run()
        finally:
            self._open.discard(stream)

    async def close(self) -> None:
        """Say Goodbye to every agent, also to those that come back meanwhile; returns when the streams of now have ended.

        Raises TimeoutError when one has not within 3 x GOODBYE_TIMEOUT_S.
        """
        self.is_closing = True
        streams = set(self._open)
        for stream in streams:
            stream.handle(s.ShutDown())
        async with asyncio.timeout(3 * GOODBYE_TIMEOUT_S):
            while streams & self._open:  # noqa: ASYNC110 - the streams belong to gRPC's tasks, whose end nobody else tells us
                await asyncio.sleep(0.01)

    # --- what streams report ---

    def enter(self, stream: _Stream, hello: link_pb2.Hello) -> bool:
        """The stream's node is linked; an older stream of the same node ends. False when the fleet is full."""
        try:
            registered = self.registry.register(hello.node_id, hello.state, stream.now())
        except FleetFull:
            return False
        older = self._streams.pop(hello.node_id, None)
        stream.generation = registered.entry.generation
        self._streams[hello.node_id] = stream
        if older is not None and registered.replaced is not None:
            self._lost(hello.node_id, registered.replaced)
            older.handle(s.Replaced())
        log.info("node %s linked: %s", hello.node_id, hello.state.model.name or "no model yet")
        return True

    def leave(self, stream: _Stream, code: str, detail: str) -> None:
        """The stream is over. Its node is lost unless a newer stream has it."""
        node_id = stream.session.node_id
        log.info("node %s: link ended: %s %s", node_id or "?", code, detail)
        if node_id and self._streams.get(node_id) is stream:
            del self._streams[node_id]
            if self.registry.lose(node_id, stream.generation, stream.now()):
                self._lost(node_id, stream.generation)

    def _lost(self, node_id: str, generation: int) -> None:
        if self.events is not None:
            self.events.on_node_lost(node_id, generation)
            self.events.pump()


class _Stream:
    """One stream; see the module's docstring."""

    def __init__(self, service: LinkService, context: _Context) -> None:
        self.now = time.monotonic
        self.session = s.Session(service.terms, self.now())
        self.generation = 0
        self._service = service
        self._context = context
        self._outbox: deque[link_pb2.ControllerFrame] = deque()
        self._outbox_bytes = 0
        self._wake_writer = asyncio.Event()
        self._wake_timer = asyncio.Event()
        self._closed = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        return self.session.state is s.LinkState.CLOSED

    async def run(self) -> None:
        """Returns when the stream is over."""
        self.handle(s.Opened())
        if self._service.is_closing:
            self.handle(s.ShutDown())
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write(), name="link.write")
                ender = group.create_task(self._keep_time_and_end(), name="link.time")
                try:
                    await self._read()
                finally:
                    self._ended.set()
                    self._closed.set()
                    self._wake_writer.set()
                    writer.cancel()
                    ender.cancel()
        finally:
            self.handle(s.StreamEnded("the call ended"))

    # --- events in, commands out ---

    def handle(self, event: s.Event) -> None:
        """Feed the session and do what it says. Never blocks."""
        before = self.session.next_deadline()
        self._obey(self.session.handle(event, self.now()))
        after = self.session.next_deadline()
        if before is not None and (after is None or after < before):
            self._wake_timer.set()

    def _obey(self, commands: list[s.Command]) -> None:
        registry, events, node_id = self._service.registry, self._service.events, self.session.node_id
        for command in commands:
            match command:
                case s.Register(hello):
                    if not self._service.enter(self, hello):
                        self.session.node_id = ""
                        self._obey(self.session.handle(s.Refused(), self.now()))
                        return
                    if events is not None:
                        events.pump()
                case s.Send(frame):
                    self.put(frame)
                case s.Beat(heartbeat):
                    registry.beat(node_id, self.generation, heartbeat)
                case s.SetState(state):
                    registry.set_state(node_id, self.generation, state)
                    if events is not None:
                        events.pump()
                case s.SetLeaving():
                    registry.set_leaving(node_id, self.generation)
                case s.Outputs(batch):
                    if events is not None:
                        events.on_outputs(node_id, self.generation, batch)
                case s.Answer(result):
                    if events is not None:
                        events.on_answer(node_id, self.generation, result)
                case s.Close(code, detail):
                    self._service.leave(self, code, detail)
                    self._closed.set()
                    self._wake_writer.set()

    def put(self, frame: link_pb2.ControllerFrame) -> bool:
        """Queue a frame for the agent. False when it does not read; then the stream ends."""
        size = frame.ByteSize()
        if self._outbox and (len(self._outbox) >= MAX_OUTBOX_FRAMES or self._outbox_bytes + size > MAX_OUTBOX_BYTES):
            # Not from here: the caller may be in the middle of what the loss would change.
            asyncio.get_running_loop().call_soon(self.handle, s.StreamEnded("the agent does not read"))
            return False
        self._outbox.append(frame)
        self._outbox_bytes += size
        self._wake_writer.set()
        return True

    # --- tasks ---

    async def _read(self) -> None:
        try:
            while (frame := await self._context.read()) is not aio.EOF:
                self._service.registry.observe(self.session.node_id, self.generation, self.now())
                self.handle(s.Received(frame))
        except aio.BaseError:
            pass  # the call was ended, from here or by a broken transport

    async def _write(self) -> None:
        while True:
            while self._outbox:
                frame = self._outbox.popleft()
                self._outbox_bytes -= frame.ByteSize()
                try:
                    await self._context.write(frame)
                except aio.BaseError:
                    self.handle(s.StreamEnded("cannot write"))
                    return
            if self._closed.is_set():
                return
            await self._wake_writer.wait()
            self._wake_writer.clear()

    async def _keep_time_and_end(self) -> None:
        """Tick the session; once it is closed, let the last frame out and end the call."""
        while (deadline := self.session.next_deadline()) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, deadline - self.now())):
                    await self._wake_timer.wait()
            self._wake_timer.clear()
            self.handle(s.Tick())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                while self._outbox:  # noqa: ASYNC110 - bounded by the timeout; the writer has no other reader
                    await asyncio.sleep(0.005)
        # An agent that heard Goodbye ends its side, which ends the read; one that does not is ended.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await self._ended.wait()
        with contextlib.suppress(aio.BaseError):
            await self._context.abort(grpc.StatusCode.ABORTED, "the link is closed")
