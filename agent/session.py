"""One stream to one controller, as a pure state machine: events and the time in, commands out.

    state        entered when             left when
    CONNECTING   created                  the stream is open -> REGISTERING (sends Hello)
    REGISTERING  Hello sent               Welcome -> READY; Goodbye, a silent peer, any other frame -> CLOSED
    READY        Welcome received         `Leave` -> DRAINING (sends Leaving); Goodbye, lease, broken peer -> CLOSED
    DRAINING     Leaving sent             nothing in flight, or the grace is over -> CLOSED
    CLOSED       from every state         never; what was still in flight is aborted in the engine

Every request that came in is answered or aborted exactly once: `in_flight` is empty when the state is CLOSED.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.proto.v1 import generation_pb2, link_pb2, node_pb2
from shoal.runtime import wire

from . import translate
from .errors import StreamBroken

MIN_PROTOCOL = 1
MAX_PROTOCOL = 1

FEATURES = ("tokenize", "logprobs")
"""What this agent understands beyond the plain protocol; a controller uses what both sides name."""

WELCOME_TIMEOUT_S = 10.0
"""A controller that does not answer the Hello within this is not one."""

MIN_HEARTBEAT_S = 0.02
"""Shorter intervals than this are not honoured."""

EARLY_HEARTBEAT_S = 0.1
"""When the engine's books change, the next heartbeat comes this early, not earlier."""

MAX_UNACKNOWLEDGED = 16
"""Heartbeats whose sending time is kept while their acknowledgement is under way."""

MAX_IN_FLIGHT = 4096
"""Requests of one controller that run or wait here; more are refused as queue_full."""

SILENT = "silent"
"""Code of a close for want of frames: the connection may be dead although nobody has ended it."""

Key = tuple[str, int]
"""A request id and its attempt."""


class LinkState(enum.Enum):
    CONNECTING = "connecting"
    REGISTERING = "registering"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"


# --- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """The stream exists; `state` goes into the Hello."""

    state: node_pb2.NodeState


@dataclass(frozen=True, slots=True)
class Received:
    """A frame of the controller."""

    frame: link_pb2.ControllerFrame


@dataclass(frozen=True, slots=True)
class Produced:
    """The engine has outputs for requests of this stream."""

    outputs: Sequence[wire.Output]


@dataclass(frozen=True, slots=True)
class Answered:
    """The engine has answered a call of this stream."""

    result: wire.CallResult


@dataclass(frozen=True, slots=True)
class NodeChanged:
    """The node's state is not what it was."""

    state: node_pb2.NodeState


@dataclass(frozen=True, slots=True)
class BooksChanged:
    """The engine's stats moved: the controller should hear of it soon."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline came, or time simply went by."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The agent goes away on purpose; what runs may end within `grace_s` seconds."""

    reason: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The transport is over."""

    detail: str


Event = Opened | Received | Produced | Answered | NodeChanged | BooksChanged | Tick | Leave | StreamEnded

# --- commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Put this frame on the stream."""

    frame: link_pb2.AgentFrame


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    """Send a heartbeat with this number; the driver fills in what it measures. `rtt_s` is that of the previous one."""

    sequence: int
    rtt_s: float | None


@dataclass(frozen=True, slots=True)
class Start:
    """Give this request to the engine."""

    request: wire.Request


@dataclass(frozen=True, slots=True)
class Abort:
    """Take it back."""

    key: Key


@dataclass(frozen=True, slots=True)
class Ask:
    """Put a short question to the engine."""

    call: wire.TokenizeCall | wire.DetokenizeCall


@dataclass(frozen=True, slots=True)
class Close:
    """The stream ends. `retry` False: the controller does not want this agent as it is."""

    code: str
    detail: str
    retry: bool


Command = Send | SendHeartbeat | Start | Abort | Ask | Close


class Session:
    """See the table above. `now` is monotonic seconds and never goes back."""

    def __init__(self, node_id: str, agent_version: str, now: float) -> None:
        self.state = LinkState.CONNECTING
        self.in_flight: set[Key] = set()
        self._node_id = node_id
        self._agent_version = agent_version
        self._deadline = now + WELCOME_TIMEOUT_S
        self._interval_s = 1.0
        self._lease_s = 0.0
        self._next_heartbeat_at = 0.0
        self._last_heartbeat_at = now
        self._sequence = 0
        self._sent_at: dict[int, float] = {}
        self._rtt_s: float | None = None
        self._news: node_pb2.NodeState | None = None

    def next_deadline(self) -> float | None:
        """When `Tick` is due, None once closed."""
        match self.state:
            case LinkState.CLOSED:
                return None
            case LinkState.READY | LinkState.DRAINING:
                return min(self._deadline, self._next_heartbeat_at)
            case _:
                return self._deadline

    def handle(self, event: Event, now: float) -> list[Command]:
        """One event. A closed session ignores all of them."""
        if self.state is LinkState.CLOSED:
            return []
        try:
            return self._handle(event, now)
        except StreamBroken as error:
            return self._close("stream_broken", str(error), retry=True)

    def _handle(self, event: Event, now: float) -> list[Command]:
        match event:
            case Opened(state):
                return self._open(state, now)
            case Received(frame):
                return self._receive(frame, now)
            case Produced(outputs):
                return self._produce(outputs)
            case Answered(result):
                answer = link_pb2.AgentFrame(call_result=translate.call_result_to_proto(result))
                return [Send(answer)] if self._is_registered else []
            case NodeChanged(state):
                if self._is_registered:
                    return [Send(link_pb2.AgentFrame(state=state))]
                # The Hello has gone out with what was true before: the news follows the Welcome.
                self._news = state if self.state is LinkState.REGISTERING else None
                return []
            case BooksChanged():
                soon = max(now, self._last_heartbeat_at + EARLY_HEARTBEAT_S)
                self._next_heartbeat_at = min(self._next_heartbeat_at, soon)
                return []
            case Tick():
                return self._tick(now)
            case Leave(reason, grace_s):
                return self._leave(reason, grace_s, now)
            case StreamEnded(detail):
                return self._close("stream_ended", detail, retry=True)

    @property
    def _is_registered(self) -> bool:
        return self.state in (LinkState.READY, LinkState.DRAINING)

    def _open(self, state: node_pb2.NodeState, now: float) -> list[Command]:
        if self.state is not LinkState.CONNECTING:
            raise StreamBroken("opened twice")
        self.state = LinkState.REGISTERING
        self._deadline = now + WELCOME_TIMEOUT_S
        hello = link_pb2.Hello(
            node_id=self._node_id,
            min_protocol=MIN_PROTOCOL,
            max_protocol=MAX_PROTOCOL,
            features=FEATURES,
            agent_version=self._agent_version,
            parser_version=wire.PARSER_VERSION,
            state=state,
        )
        return [Send(link_pb2.AgentFrame(hello=hello))]

    def _receive(self, frame: link_pb2.ControllerFrame, now: float) -> list[Command]:
        kind = frame.WhichOneof("frame")
        if kind == "goodbye":
            return self._close(frame.goodbye.code, frame.goodbye.message, retry=frame.goodbye.retry)
        if kind == "welcome":
            return self._register(frame.welcome, now)
        if not self._is_registered:
            raise StreamBroken(f"{kind or 'an unknown frame'} before Welcome")
        if self.state is LinkState.READY:
            self._deadline = now + self._lease_s
        match kind:
            case "submit":
                return self._submit(frame.submit)
            case "cancel":
                key = (frame.cancel.request_id, frame.cancel.attempt)
                # It stays in flight until the engine has confirmed the end: the controller counts on that output.
                return [Abort(key)] if key in self.in_flight else []
            case "call":
                return [Ask(translate.call_from_proto(frame.call))]
            case "heartbeat_ack":
                sent_at = self._sent_at.pop(frame.heartbeat_ack.sequence, None)
                if sent_at is not None:
                    self._rtt_s = now - sent_at
                return []
            case _:
                return []  # a frame of a later protocol: the version range says that it may be ignored

    def _register(self, welcome: link_pb2.Welcome, now: float) -> list[Command]:
        if self.state is not LinkState.REGISTERING:
            raise StreamBroken("Welcome out of place")
        if not MIN_PROTOCOL <= welcome.protocol <= MAX_PROTOCOL:
            raise StreamBroken(f"the controller chose protocol {welcome.protocol}, which was not offered")
        if welcome.heartbeat_interval_ms == 0 or welcome.lease_ms == 0:
            raise StreamBroken("Welcome without a heartbeat interval or lease")
        self.state = LinkState.READY
        self._interval_s = max(MIN_HEARTBEAT_S, welcome.heartbeat_interval_ms / 1000)
        # The controller acknowledges heartbeats, so its own silence is judged by the lease that it grants us.
        self._lease_s = max(welcome.lease_ms / 1000, 2 * self._interval_s)
        self._deadline = now + self._lease_s
        news, self._news = self._news, None
        told: list[Command] = [] if news is None else [Send(link_pb2.AgentFrame(state=news))]
        return told + self._beat(now)

    def _submit(self, submit: link_pb2.Submit) -> list[Command]:
        key = (submit.request_id, submit.attempt)
        if not submit.request_id or key in self.in_flight:
            raise StreamBroken("a request without an id, or one submitted twice")
        if self.state is LinkState.DRAINING:
            return [_refusal(key, "node_leaving", "the node is going away")]
        if len(self.in_flight) >= MAX_IN_FLIGHT:
            return [_refusal(key, "queue_full", f"{MAX_IN_FLIGHT} requests are in flight here")]
        request = translate.request_from_submit(submit)
        self.in_flight.add(key)
        return [Start(request)]

    def _produce(self, outputs: Sequence[wire.Output]) -> list[Command]:
        if not self._is_registered:
            return []
        batch = [translate.output_to_proto(output) for output in outputs]
        return [Send(link_pb2.AgentFrame(outputs=link_pb2.OutputBatch(outputs=batch)))] if batch else []

    def end(self, key: Key) -> list[Command]:
        """All choices of the request have ended; their last outputs have been handed over."""
        self.in_flight.discard(key)
        if self.state is LinkState.DRAINING and not self.in_flight:
            return self._close("left", "the agent has left", retry=True)
        return []

    def _tick(self, now: float) -> list[Command]:
        if now >= self._deadline:
            if self.state is LinkState.DRAINING:
                return self._close("left", "the agent has left before its requests ended", retry=True)
            return self._close(SILENT, f"the controller was silent while {self.state.value}", retry=True)
        if self._is_registered and now >= self._next_heartbeat_at:
            return self._beat(now)
        return []

    def _beat(self, now: float) -> list[Command]:
        self._sequence += 1
        self._last_heartbeat_at = now
        self._next_heartbeat_at = now + self._interval_s
        self._sent_at[self._sequence] = now
        self._sent_at.pop(self._sequence - MAX_UNACKNOWLEDGED, None)
        return [SendHeartbeat(self._sequence, self._rtt_s)]

    def _leave(self, reason: str, grace_s: float, now: float) -> list[Command]:
        if self.state is LinkState.DRAINING:
            return []
        if self.state is not LinkState.READY:
            return self._close("left", reason, retry=True)
        self.state = LinkState.DRAINING
        self._deadline = now + grace_s
        leaving: list[Command] = [Send(link_pb2.AgentFrame(leaving=link_pb2.Leaving(reason=reason)))]
        return leaving if self.in_flight else leaving + self._close("left", reason, retry=True)

    def _close(self, code: str, detail: str, *, retry: bool) -> list[Command]:
        self.state = LinkState.CLOSED
        aborts: list[Command] = [Abort(key) for key in sorted(self.in_flight)]
        self.in_flight.clear()
        return [*aborts, Close(code, detail, retry)]


def _refusal(key: Key, code: str, message: str) -> Send:
    error = generation_pb2.Error(code=code, message=message, retryable=True)
    output = generation_pb2.Output(
        request_id=key[0],
        attempt=key[1],
        finish=generation_pb2.Finish(
            reason=generation_pb2.FINISH_REASON_ERROR, usage=generation_pb2.Usage(), error=error
        ),
    )
    return Send(link_pb2.AgentFrame(outputs=link_pb2.OutputBatch(outputs=[output])))
