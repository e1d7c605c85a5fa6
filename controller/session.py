"""One stream from one agent, as a pure state machine: events and the time in, commands out.

    state        entered when             left when
    CONNECTING   created                  the stream is open -> REGISTERING
    REGISTERING  waiting for the Hello    a good one -> READY (sends Welcome); a bad one, another frame, silence -> CLOSED
    READY        Welcome sent             Leaving received -> DRAINING; lease, broken frame, end, shut-down, replaced -> CLOSED
    DRAINING     Leaving received         the same -> CLOSED; what is in flight may end
    CLOSED       from every state         never

Where the agent deserves to know why, Goodbye is sent before the close. Every frame renews the lease.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from shoal.proto.v1 import link_pb2, node_pb2

from .frame_check import FrameRefused, check_heartbeat, check_hello, check_outputs, check_state

MIN_PROTOCOL = 1
MAX_PROTOCOL = 1
"""Protocol versions spoken here; of an agent's range the highest common one is taken."""

FEATURES = ("tokenize", "logprobs")

HELLO_TIMEOUT_S = 10.0
"""A stream that does not introduce itself within this is closed."""


class LinkState(enum.Enum):
    CONNECTING = "connecting"
    REGISTERING = "registering"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Terms:
    """What every agent is told in its Welcome."""

    heartbeat_interval_s: float = 1.0
    lease_s: float = 5.0
    """Five heartbeats: a machine that swaps or suspends for a moment is not lost."""
    controller_version: str = ""


# --- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """The stream exists."""


@dataclass(frozen=True, slots=True)
class Received:
    """A frame of the agent."""

    frame: link_pb2.AgentFrame


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline came, or time simply went by."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """Another stream has registered the same node."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The node could not be registered: the fleet is full."""


@dataclass(frozen=True, slots=True)
class ShutDown:
    """The controller goes away."""


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The transport is over, or the agent does not read."""

    detail: str


Event = Opened | Received | Tick | Replaced | Refused | ShutDown | StreamEnded

# --- commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Register:
    """Enter the node into the registry; comes before Welcome, so that a full fleet can still say Goodbye."""

    hello: link_pb2.Hello


@dataclass(frozen=True, slots=True)
class Send:
    """Put this frame on the stream."""

    frame: link_pb2.ControllerFrame


@dataclass(frozen=True, slots=True)
class Beat:
    """Measurements came."""

    heartbeat: link_pb2.Heartbeat


@dataclass(frozen=True, slots=True)
class SetState:
    """The node's state is another."""

    state: node_pb2.NodeState


@dataclass(frozen=True, slots=True)
class SetLeaving:
    """No new work for the node."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Answers, to dispatch."""

    batch: link_pb2.OutputBatch


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a call, to dispatch."""

    result: link_pb2.CallResult


@dataclass(frozen=True, slots=True)
class Close:
    """The stream ends; the node is lost if it was registered."""

    code: str
    detail: str


Command = Register | Send | Beat | SetState | SetLeaving | Outputs | Answer | Close


class Session:
    """See the table above. `now` is monotonic seconds and never goes back."""

    def __init__(self, terms: Terms, now: float) -> None:
        self.state = LinkState.CONNECTING
        self.node_id = ""
        self._terms = terms
        self._deadline = now + HELLO_TIMEOUT_S
        self._last_sequence = 0

    @property
    def is_registered(self) -> bool:
        return self.state in (LinkState.READY, LinkState.DRAINING)

    def next_deadline(self) -> float | None:
        """When `Tick` is due, None once closed."""
        return None if self.state is LinkState.CLOSED else self._deadline

    def handle(self, event: Event, now: float) -> list[Command]:
        """One event. A closed session ignores all of them."""
        if self.state is LinkState.CLOSED:
            return []
        match event:
            case Opened():
                self.state = LinkState.REGISTERING
                self._deadline = now + HELLO_TIMEOUT_S
                return []
            case Received(frame):
                return self._receive(frame, now)
            case Tick():
                return self._tick(now)
            case Replaced():
                return self._goodbye("duplicate_node", "another stream has registered this node id", retry=False)
            case Refused():
                return self._goodbye("fleet_full", "this controller has as many nodes as it takes", retry=True)
            case ShutDown():
                return self._goodbye("shutting_down", "the controller is shutting down", retry=True)
            case StreamEnded(detail):
                return self._close("stream_ended", detail)

    def _receive(self, frame: link_pb2.AgentFrame, now: float) -> list[Command]:
        if self.state is LinkState.REGISTERING:
            return self._register(frame, now)
        self._deadline = now + self._terms.lease_s
        try:
            return self._obey(frame)
        except FrameRefused as error:
            return self._goodbye("bad_frame", str(error), retry=True)

    def _obey(self, frame: link_pb2.AgentFrame) -> list[Command]:
        match frame.WhichOneof("frame"):
            case "outputs":
                check_outputs(frame.outputs)
                return [Outputs(frame.outputs)]
            case "heartbeat":
                check_heartbeat(frame.heartbeat)
                ack = link_pb2.HeartbeatAck(sequence=frame.heartbeat.sequence)
                commands: list[Command] = [Send(link_pb2.ControllerFrame(heartbeat_ack=ack))]
                if frame.heartbeat.sequence > self._last_sequence:
                    self._last_sequence = frame.heartbeat.sequence
                    commands.append(Beat(frame.heartbeat))
                return commands
            case "state":
                check_state(frame.state)
                return [SetState(frame.state)]
            case "call_result":
                return [Answer(frame.call_result)]
            case "leaving":
                self.state = LinkState.DRAINING
                return [SetLeaving()]
            case "hello":
                raise FrameRefused("a second Hello on one stream")
            case _:
                return []  # a frame of a later protocol: the version range says that it may be ignored

    def _register(self, frame: link_pb2.AgentFrame, now: float) -> list[Command]:
        if frame.WhichOneof("frame") != "hello":
            return self._goodbye("bad_hello", "the first frame must be a Hello", retry=False)
        hello = frame.hello
        try:
            check_hello(hello)
        except FrameRefused as error:
            return self._goodbye("bad_hello", str(error), retry=False)
        if hello.min_protocol > MAX_PROTOCOL or hello.max_protocol < MIN_PROTOCOL:
            spoken = f"{hello.min_protocol} to {hello.max_protocol}"
            message = f"the agent speaks protocol {spoken}, this controller {MIN_PROTOCOL} to {MAX_PROTOCOL}"
            return self._goodbye("unsupported_protocol", message, retry=False)
        self.state = LinkState.READY
        self.node_id = hello.node_id
        self._deadline = now + self._terms.lease_s
        welcome = link_pb2.Welcome(
            protocol=min(hello.max_protocol, MAX_PROTOCOL),
            features=[feature for feature in FEATURES if feature in hello.features],
            heartbeat_interval_ms=round(self._terms.heartbeat_interval_s * 1000),
            lease_ms=round(self._terms.lease_s * 1000),
            controller_version=self._terms.controller_version,
        )
        return [Register(hello), Send(link_pb2.ControllerFrame(welcome=welcome))]

    def _tick(self, now: float) -> list[Command]:
        if now < self._deadline:
            return []
        if self.is_registered:
            return self._goodbye("lease_expired", f"no frame for {self._terms.lease_s:g} s", retry=True)
        return self._goodbye("bad_hello", f"no Hello within {HELLO_TIMEOUT_S:g} s", retry=True)

    def _goodbye(self, code: str, message: str, *, retry: bool) -> list[Command]:
        goodbye = link_pb2.Goodbye(code=code, message=message, retry=retry)
        return [Send(link_pb2.ControllerFrame(goodbye=goodbye)), *self._close(code, message)]

    def _close(self, code: str, detail: str) -> list[Command]:
        self.state = LinkState.CLOSED
        return [Close(code, detail)]
