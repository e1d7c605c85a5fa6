"""The controller's end of a link as transcripts: what comes in, what goes out, in which state that leaves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_fake_fleet import ready_state

from shoal.controller import session as s
from shoal.controller.session import HELLO_TIMEOUT_S, LinkState, Session, Terms
from shoal.proto.v1 import generation_pb2, link_pb2, node_pb2

TERMS = Terms(heartbeat_interval_s=1.0, lease_s=5.0, controller_version="9")


def frame(**fields: Any) -> s.Received:
    return s.Received(link_pb2.AgentFrame(**fields))


def hello(**fields: Any) -> s.Received:
    defaults: dict[str, Any] = {"node_id": "a", "min_protocol": 1, "max_protocol": 1, "state": ready_state()}
    return frame(hello=link_pb2.Hello(**(defaults | fields)))


def opened() -> Session:
    session = Session(TERMS, 0.0)
    assert session.state is LinkState.CONNECTING
    assert session.handle(s.Opened(), 0.0) == []
    assert session.state is LinkState.REGISTERING
    return session


def registered() -> Session:
    session = opened()
    session.handle(hello(), 0.0)
    assert session.state is LinkState.READY
    return session


def goodbye_of(commands: list[s.Command]) -> link_pb2.Goodbye:
    assert [type(command) for command in commands] == [s.Send, s.Close]
    sent = commands[0]
    assert isinstance(sent, s.Send) and sent.frame.WhichOneof("frame") == "goodbye"
    return sent.frame.goodbye


def test_a_good_hello_registers_then_welcomes_with_the_terms() -> None:
    session = opened()
    register, welcome = session.handle(hello(max_protocol=7, features=["tokenize", "new"]), 1.0)
    assert isinstance(register, s.Register) and register.hello.node_id == "a"
    assert isinstance(welcome, s.Send)
    terms = welcome.frame.welcome
    assert (terms.protocol, list(terms.features)) == (1, ["tokenize"])
    assert (terms.heartbeat_interval_ms, terms.lease_ms, terms.controller_version) == (1000, 5000, "9")
    assert session.state is LinkState.READY and session.next_deadline() == 6.0


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (hello(node_id=""), "bad_hello"),
        (hello(node_id="a b"), "bad_hello"),
        (hello(node_id="x" * 129), "bad_hello"),
        (hello(node_id='a"\n'), "bad_hello"),
        (hello(node_id="controller"), "bad_hello"),
        (hello(min_protocol=0), "bad_hello"),
        (hello(min_protocol=2, max_protocol=1), "bad_hello"),
        (hello(min_protocol=2, max_protocol=3), "unsupported_protocol"),
        (hello(state=None), "bad_hello"),
        (hello(state=ready_state(slots=0)), "bad_hello"),
        (hello(state=ready_state(slots=10**6)), "bad_hello"),
        (hello(state=ready_state("")), "bad_hello"),
        (hello(state=ready_state("x" * 600)), "bad_hello"),
        (hello(features=["x"] * 1000), "bad_hello"),
        (frame(heartbeat=link_pb2.Heartbeat()), "bad_hello"),
        (frame(), "bad_hello"),
    ],
)
def test_a_bad_first_frame_gets_a_goodbye_that_asks_not_to_come_back(event: s.Received, code: str) -> None:
    session = opened()
    goodbye = goodbye_of(session.handle(event, 0.0))
    assert goodbye.code == code and not goodbye.retry and goodbye.message
    assert session.state is LinkState.CLOSED and session.next_deadline() is None
    assert session.handle(hello(), 0.0) == []


def test_silence_before_the_hello_ends_the_stream() -> None:
    session = opened()
    assert session.handle(s.Tick(), HELLO_TIMEOUT_S - 0.1) == []
    assert goodbye_of(session.handle(s.Tick(), HELLO_TIMEOUT_S)).code == "bad_hello"


def test_every_frame_renews_the_lease_and_silence_ends_it() -> None:
    session = registered()
    ack, beat = session.handle(frame(heartbeat=link_pb2.Heartbeat(sequence=4)), 3.0)
    assert isinstance(ack, s.Send) and ack.frame.heartbeat_ack.sequence == 4 and isinstance(beat, s.Beat)
    assert session.handle(s.Tick(), 5.0) == []
    assert isinstance(session.handle(frame(outputs=link_pb2.OutputBatch()), 7.0)[0], s.Outputs)
    assert session.handle(s.Tick(), 11.9) == []
    goodbye = goodbye_of(session.handle(s.Tick(), 12.0))
    assert goodbye.code == "lease_expired" and goodbye.retry


def test_an_old_heartbeat_is_acknowledged_but_not_believed() -> None:
    session = registered()
    session.handle(frame(heartbeat=link_pb2.Heartbeat(sequence=4)), 1.0)
    assert [type(c) for c in session.handle(frame(heartbeat=link_pb2.Heartbeat(sequence=4)), 1.0)] == [s.Send]


def test_leaving_drains_and_the_end_of_the_stream_closes() -> None:
    session = registered()
    assert session.handle(frame(leaving=link_pb2.Leaving(reason="update")), 1.0) == [s.SetLeaving()]
    assert session.state is LinkState.DRAINING
    batch = link_pb2.OutputBatch(outputs=[generation_pb2.Output(request_id="r")])
    assert session.handle(frame(outputs=batch), 2.0) == [s.Outputs(batch)]
    assert session.handle(s.StreamEnded("gone"), 3.0) == [s.Close("stream_ended", "gone")]
    assert session.state is LinkState.CLOSED


@pytest.mark.parametrize(
    ("event", "code", "retry"),
    [
        (s.Replaced(), "duplicate_node", False),
        (s.ShutDown(), "shutting_down", True),
        (s.Refused(), "fleet_full", True),
        (hello(), "bad_frame", True),
        (frame(state=node_pb2.NodeState(slots=10**6)), "bad_frame", True),
        (frame(heartbeat=link_pb2.Heartbeat(rtt_s=float("nan"))), "bad_frame", True),
        (frame(outputs=link_pb2.OutputBatch(outputs=[generation_pb2.Output()])), "bad_frame", True),
    ],
)
def test_what_ends_a_registered_stream(event: s.Event, code: str, retry: bool) -> None:
    session = registered()
    goodbye = goodbye_of(session.handle(event, 1.0))
    assert (goodbye.code, goodbye.retry) == (code, retry)


def test_a_frame_of_a_later_protocol_is_ignored_and_a_state_and_an_answer_pass() -> None:
    session = registered()
    assert session.handle(frame(), 1.0) == []
    result = link_pb2.CallResult(call_id="c1")
    assert session.handle(frame(call_result=result), 1.0) == [s.Answer(result)]
    state = ready_state("other")
    assert session.handle(frame(state=state), 1.0) == [s.SetState(state)]


@pytest.mark.parametrize(
    "histogram",
    [
        {"bounds": [1.0], "counts": [1]},
        {"bounds": [2.0, 1.0], "counts": [0, 0, 0]},
        {"bounds": [float("inf")], "counts": [0, 0]},
        {"bounds": [1.0], "counts": [1, 1], "sum": float("nan")},
        {"bounds": [float(i) for i in range(100)], "counts": [0] * 101},
    ],
)
def test_a_histogram_that_could_not_be_shown_is_refused(histogram: dict[str, Any]) -> None:
    stats = link_pb2.EngineStats(step_s=link_pb2.HistogramState(**histogram))
    commands = registered().handle(frame(heartbeat=link_pb2.Heartbeat(sequence=1, stats=stats)), 1.0)
    assert goodbye_of(commands).code == "bad_frame"


EVENTS: list[Callable[[], s.Event]] = [
    s.Opened, s.Tick, s.Replaced, s.ShutDown, s.Refused, hello, frame, lambda: hello(node_id=""),
    lambda: frame(heartbeat=link_pb2.Heartbeat(sequence=1)), lambda: frame(leaving=link_pb2.Leaving()),
    lambda: frame(outputs=link_pb2.OutputBatch()), lambda: s.StreamEnded("x"),
]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 7)), max_size=30))
def test_whatever_happens_a_stream_registers_once_closes_once_and_is_silent_after(
    steps: list[tuple[Callable[[], s.Event], float]],
) -> None:
    session, now = Session(TERMS, 0.0), 0.0
    seen: list[s.Command] = []
    for make, pause in steps:
        now += pause
        was_closed = session.state is LinkState.CLOSED
        commands = session.handle(make(), now)
        assert not (was_closed and commands)
        deadline = session.next_deadline()
        assert (deadline is None) == (session.state is LinkState.CLOSED)
        seen += commands
    assert sum(isinstance(command, s.Register) for command in seen) <= 1
    assert sum(isinstance(command, s.Close) for command in seen) == (session.state is LinkState.CLOSED)
