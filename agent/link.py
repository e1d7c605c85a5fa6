"""The driver of `session.py`: one gRPC stream at a time to one controller, dialled again for ever.

One channel a controller, replaced only when its peer has gone silent. A pending `read` is never cancelled as a task: the call is cancelled
instead, which ends it. Requests that came over a stream end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from grpc import aio

from shoal.proto.v1 import link_pb2, link_pb2_grpc, node_pb2
from shoal.runtime import wire

from . import session as s
from .address import is_loopback, split_address
from .backoff import Backoff
from .outbox import Outbox, OutboxFull
from .worker import Worker

RECONNECT_BASE_S = 0.1
RECONNECT_CAP_S = 10.0
REFUSED_PAUSE_S = 30.0
"""Pause after a Goodbye that asks not to come back: the controller may be replaced by one that wants this agent."""

STABLE_S = 5.0
"""A stream that was registered this long resets the back-off."""

FLUSH_TIMEOUT_S = 0.5
"""How long the last frames of a stream (Leaving, final outputs) may take to go out."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest frame in either direction; requests carry up to 8 MiB of messages, prompt logprobs more."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # The waiting between attempts is ours; the channel itself must not refuse to try.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Channels to one address would share a connection, also with one that is being replaced.
    ("grpc.use_local_subchannel_pool", 1),
)

log = logging.getLogger(__name__)

_Call = Any
"""grpc.aio's stream-stream call; the library's own type is generic over what it does not check."""


class NodeView(Protocol):
    """What a link reports of its node."""

    def state(self) -> node_pb2.NodeState: ...

    def heartbeat(self, sequence: int, rtt_s: float | None) -> link_pb2.Heartbeat: ...

    def on_link_changed(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """`address` is host:port. `draw` is the source of chance for the back-off."""

    address: str
    node_id: str
    agent_version: str
    draw: Callable[[], float] = field(default=random.random)


class Link:
    """One controller. `run` dials until `leave`."""

    def __init__(self, config: LinkConfig, worker: Worker, node: NodeView) -> None:
        self.address = config.address
        self.rtt_s: float | None = None
        self.refusal = ""
        self._config = config
        self._worker = worker
        self._node = node
        self._stream: _Stream | None = None
        self._leaving = asyncio.Event()
        self._leave_event: s.Leave | None = None

    @property
    def is_linked(self) -> bool:
        """The controller has welcomed this agent and the stream stands."""
        return self._stream is not None and self._stream.session.state in (s.LinkState.READY, s.LinkState.DRAINING)

    def node_changed(self) -> None:
        """Push the node's state."""
        if self._stream is not None:
            self._stream.handle(s.NodeChanged(self._node.state()))

    def books_changed(self) -> None:
        """Send a heartbeat soon."""
        if self._stream is not None:
            self._stream.handle(s.BooksChanged())

    def leave(self, reason: str, grace_s: float) -> None:
        """Say so, let what runs end within the grace; then `run` returns."""
        self._leave_event = s.Leave(reason, grace_s)
        self._leaving.set()
        if self._stream is not None:
            self._stream.handle(self._leave_event)

    async def run(self) -> None:
        """Dial, talk, dial again; returns only after `leave`."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(RECONNECT_BASE_S, RECONNECT_CAP_S, self._config.draw)
        channel = self._dial()
        is_told = False
        try:
            while not self._leaving.is_set():
                call = link_pb2_grpc.AgentLinkStub(channel).Connect()
                stream = self._stream = _Stream(self._config, call, self._worker, self._node)
                try:
                    close = await stream.run()
                finally:
                    self._stream = None
                    self._node.on_link_changed()
                if self._leaving.is_set():
                    break
                if close.code == s.SILENT:
                    channel = await self._replace(channel)
                if stream.registered_at is not None and loop.time() - stream.registered_at >= STABLE_S:
                    backoff.reset()
                self.refusal = "" if close.retry else f"{close.code}: {close.detail}"
                pause = backoff.next_delay_s() if close.retry else REFUSED_PAUSE_S
                # A controller that is not there is dialled often; one line tells of it until it is linked again.
                if stream.registered_at is not None or not is_told:
                    log.warning("%s: %s: %s; trying again", self.address, close.code, close.detail)
                is_told = True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._leaving.wait()
        finally:
            await channel.close()

    def _dial(self) -> aio.Channel:
        options = CHANNEL_OPTIONS
        if is_loopback(split_address(self.address)[0]):
            # A proxy for the way out of the house does not lead to this machine.
            options = (*options, ("grpc.enable_http_proxy", 0))
        return aio.insecure_channel(self.address, options=options)

    async def _replace(self, silent: aio.Channel) -> aio.Channel:
        """A new connection: a stream on the silent one would be as silent until the system gives the connection up.

        The new channel comes first: gRPC takes itself down with the last one and leaks while it does.
        """
        channel = self._dial()
        await silent.close()
        return channel


class _Stream:
    """One stream from open to close; the worker's `Requester` for what came over it."""

    def __init__(self, config: LinkConfig, call: _Call, worker: Worker, node: NodeView) -> None:
        self._address = config.address
        self._call = call
        self._worker = worker
        self._node = node
        self._now = asyncio.get_running_loop().time
        self.session = s.Session(config.node_id, config.agent_version, self._now())
        self.registered_at: float | None = None
        self._outbox = Outbox()
        self._wake_writer = asyncio.Event()
        self._wake_timer = asyncio.Event()
        self._closed: asyncio.Future[s.Close] = asyncio.get_running_loop().create_future()

    async def run(self) -> s.Close:
        """Returns why the stream ended."""
        async with asyncio.TaskGroup() as group:
            self.handle(s.Opened(self._node.state()))
            reader = group.create_task(self._read(), name="link.read")
            writer = group.create_task(self._write(), name="link.write")
            timer = group.create_task(self._keep_time(), name="link.time")
            try:
                close = await self._closed
                await self._flush(writer, reader)
            finally:
                # Ends the read as well. A cancelled task in `read` would leak its operation inside grpc.
                self._call.cancel()
                writer.cancel()
                timer.cancel()
        return close

    # --- events in, commands out ---

    def handle(self, event: s.Event) -> None:
        """Feed the session and do what it says. Never blocks."""
        before = self.session.next_deadline()
        self._obey(self.session.handle(event, self._now()))
        after = self.session.next_deadline()
        if before is not None and after is not None and after < before:
            self._wake_timer.set()

    def _obey(self, commands: list[s.Command]) -> None:
        was_linked = self.registered_at is not None
        for command in commands:
            match command:
                case s.Send(frame):
                    self._put(frame)
                case s.SendHeartbeat(sequence, rtt_s):
                    if self.registered_at is None:
                        self.registered_at = self._now()
                    self._put(link_pb2.AgentFrame(heartbeat=self._node.heartbeat(sequence, rtt_s)))
                case s.Start(request):
                    self._worker.submit(request, self)
                case s.Abort(key):
                    if self.session.state is s.LinkState.CLOSED:
                        self._worker.forget(key, self)
                    else:
                        self._worker.abort(key, self)
                case s.Ask(call):
                    self._worker.ask(call, self)
                case s.Close():
                    if not self._closed.done():
                        self._closed.set_result(command)
        if not was_linked and self.registered_at is not None:
            log.info("linked to %s", self._address)
            self._node.on_link_changed()

    def _put(self, frame: link_pb2.AgentFrame) -> None:
        try:
            self._outbox.put(frame)
        except OutboxFull:
            self._obey(self.session.handle(s.StreamEnded("the controller does not read"), self._now()))
        self._wake_writer.set()

    # --- what the worker says ---

    def on_outputs(self, outputs: list[wire.Output]) -> None:
        self.handle(s.Produced(outputs))

    def on_end(self, key: s.Key) -> None:
        self._obey(self.session.end(key))

    def on_answer(self, result: wire.CallResult) -> None:
        self.handle(s.Answered(result))

    # --- tasks ---

    async def _read(self) -> None:
        try:
            async for frame in _frames(self._call):
                self.handle(s.Received(frame))
            self.handle(s.StreamEnded("the controller ended the stream"))
        except aio.AioRpcError as error:
            self.handle(s.StreamEnded(f"{error.code().name.lower()}: {error.details()}"))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The call was cancelled, by `run` or by the library: not this task.
            self.handle(s.StreamEnded("the stream was cancelled"))

    async def _write(self) -> None:
        try:
            while True:
                while (wait_s := self._outbox.ready_in(self._now())) is not None:
                    if wait_s:
                        await asyncio.sleep(wait_s)
                    for frame in self._outbox.take(self._now()):
                        await self._call.write(frame)
                if self._closed.done():
                    return
                await self._wake_writer.wait()
                self._wake_writer.clear()
        except (aio.AioRpcError, asyncio.InvalidStateError) as error:
            self.handle(s.StreamEnded(f"cannot write: {type(error).__name__}"))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self.handle(s.StreamEnded("the stream was cancelled"))

    async def _keep_time(self) -> None:
        while (deadline := self.session.next_deadline()) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._wake_timer.wait()
            self._wake_timer.clear()
            self._obey(self.session.handle(s.Tick(), self._now()))

    async def _flush(self, writer: asyncio.Task[None], reader: asyncio.Task[None]) -> None:
        """Give the last frames a moment to go out, then half-close and let the controller end the stream."""
        self._wake_writer.set()
        await asyncio.wait({writer}, timeout=FLUSH_TIMEOUT_S)
        if writer.done() and not self._call.done():
            with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
                await self._call.done_writing()
            await asyncio.wait({reader}, timeout=FLUSH_TIMEOUT_S)


async def _frames(call: _Call) -> AsyncIterator[link_pb2.ControllerFrame]:
    while (frame := await call.read()) is not aio.EOF:
        yield frame
