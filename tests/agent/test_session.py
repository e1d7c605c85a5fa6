"""The link's state machine: transcripts, and properties over random event orders."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent import session as s
from shoal.proto.v1 import generation_pb2, link_pb2, node_pb2
from shoal.runtime import wire

WELCOME = link_pb2.Welcome(protocol=1, heartbeat_interval_ms=1000, lease_ms=5000)


def received(**frame: Any) -> s.Received:
    return s.Received(link_pb2.ControllerFrame(**frame))


def submit(request_id: str, attempt: int = 0) -> s.Received:
    request = generation_pb2.GenerationRequest(prompt=generation_pb2.Prompt(text="x"))
    return received(submit=link_pb2.Submit(request_id=request_id, attempt=attempt, request=request))


def ready_session() -> s.Session:
    session = s.Session("n1", "1.0", 0.0)
    session.handle(s.Opened(node_pb2.NodeState(pid=7)), 0.0)
    session.handle(received(welcome=WELCOME), 0.0)
    assert session.state is s.LinkState.READY
    return session


def close_of(commands: list[s.Command]) -> s.Close:
    closes = [command for command in commands if isinstance(command, s.Close)]
    assert len(closes) == 1 and commands[-1] is closes[0]
    return closes[0]


def sent(commands: list[s.Command]) -> list[link_pb2.AgentFrame]:
    return [command.frame for command in commands if isinstance(command, s.Send)]


def test_a_change_between_hello_and_welcome_is_told_after_the_welcome() -> None:
    session = s.Session("n1", "1.0", 0.0)
    session.handle(s.Opened(node_pb2.NodeState(pid=7)), 0.0)
    assert session.handle(s.NodeChanged(node_pb2.NodeState(pid=7, engine_pid=8)), 0.1) == []
    assert session.handle(s.NodeChanged(node_pb2.NodeState(pid=7, engine_pid=9)), 0.2) == []
    (frame,) = sent(session.handle(received(welcome=WELCOME), 0.3))
    assert frame.state.engine_pid == 9


def test_registration() -> None:
    session = s.Session("n1", "1.0", 0.0)
    assert session.state is s.LinkState.CONNECTING and session.next_deadline() == s.WELCOME_TIMEOUT_S
    (command,) = session.handle(s.Opened(node_pb2.NodeState(pid=7)), 1.0)
    assert session.state is s.LinkState.REGISTERING and session.next_deadline() == 1.0 + s.WELCOME_TIMEOUT_S
    assert isinstance(command, s.Send)
    hello = command.frame.hello
    assert hello.node_id == "n1" and hello.agent_version == "1.0" and hello.state.pid == 7
    assert (hello.min_protocol, hello.max_protocol) == (1, 1) and list(hello.features) == list(s.FEATURES)
    assert session.handle(received(welcome=WELCOME), 2.0) == [s.SendHeartbeat(1, None)]
    assert session.state is s.LinkState.READY and session.next_deadline() == 3.0


@pytest.mark.parametrize(
    "frame",
    [
        {"submit": link_pb2.Submit(request_id="r")},
        {"heartbeat_ack": link_pb2.HeartbeatAck(sequence=1)},
        {"welcome": link_pb2.Welcome(protocol=2, heartbeat_interval_ms=1, lease_ms=1)},
        {"welcome": link_pb2.Welcome(protocol=0, heartbeat_interval_ms=1, lease_ms=1)},
        {"welcome": link_pb2.Welcome(protocol=1, lease_ms=1)},
        {"welcome": link_pb2.Welcome(protocol=1, heartbeat_interval_ms=1)},
        {},
    ],
)
def test_a_first_frame_that_is_no_welcome_ends_it(frame: dict[str, Any]) -> None:
    session = s.Session("n1", "1.0", 0.0)
    session.handle(s.Opened(node_pb2.NodeState()), 0.0)
    close = close_of(session.handle(received(**frame), 0.0))
    assert close.code == "stream_broken" and close.retry
    assert session.state is s.LinkState.CLOSED and session.next_deadline() is None


def test_a_second_welcome_ends_it() -> None:
    assert close_of(ready_session().handle(received(welcome=WELCOME), 1.0)).code == "stream_broken"


@pytest.mark.parametrize("retry", [True, False])
def test_goodbye(retry: bool) -> None:
    session = s.Session("n1", "1.0", 0.0)
    session.handle(s.Opened(node_pb2.NodeState()), 0.0)
    goodbye = link_pb2.Goodbye(code="duplicate_node", message="twice", retry=retry)
    assert close_of(session.handle(received(goodbye=goodbye), 0.0)) == s.Close("duplicate_node", "twice", retry)


def test_no_welcome_in_time() -> None:
    session = s.Session("n1", "1.0", 0.0)
    session.handle(s.Opened(node_pb2.NodeState()), 0.0)
    assert session.handle(s.Tick(), s.WELCOME_TIMEOUT_S - 0.1) == []
    assert close_of(session.handle(s.Tick(), s.WELCOME_TIMEOUT_S)).code == "silent"


def test_heartbeats_and_the_round_trip() -> None:
    session = ready_session()
    assert session.handle(s.Tick(), 0.5) == []
    assert session.handle(received(heartbeat_ack=link_pb2.HeartbeatAck(sequence=1)), 0.25) == []
    assert session.handle(s.Tick(), 1.0) == [s.SendHeartbeat(2, 0.25)]
    assert session.handle(received(heartbeat_ack=link_pb2.HeartbeatAck(sequence=99)), 1.1) == []
    assert session.handle(s.Tick(), 2.0) == [s.SendHeartbeat(3, 0.25)]


def test_changed_books_bring_the_heartbeat_forward() -> None:
    session = ready_session()
    session.handle(s.BooksChanged(), 0.01)
    assert session.next_deadline() == pytest.approx(s.EARLY_HEARTBEAT_S)
    assert session.handle(s.Tick(), s.EARLY_HEARTBEAT_S) == [s.SendHeartbeat(2, None)]
    session.handle(s.BooksChanged(), 0.9)
    assert session.next_deadline() == 0.9


def test_the_lease_is_renewed_by_any_frame() -> None:
    session = ready_session()
    session.handle(received(heartbeat_ack=link_pb2.HeartbeatAck(sequence=1)), 4.0)
    for now in (5.0, 8.9):
        assert session.state is s.LinkState.READY
        session.handle(s.Tick(), now)
    assert close_of(session.handle(s.Tick(), 9.0)).code == "silent"


def test_a_request_from_start_to_end() -> None:
    session = ready_session()
    (start,) = session.handle(submit("r"), 1.0)
    assert isinstance(start, s.Start) and start.request.prompt == wire.TextPrompt("x")
    assert session.in_flight == {("r", 0)}
    (frame,) = sent(session.handle(s.Produced([wire.Output(request_id="r", token_ids=[4])]), 1.1))
    assert [list(output.token_ids) for output in frame.outputs.outputs] == [[4]]
    assert session.end(("r", 0)) == [] and not session.in_flight
    assert session.handle(received(cancel=link_pb2.Cancel(request_id="r")), 1.2) == []


def test_cancel_names_the_attempt() -> None:
    session = ready_session()
    session.handle(submit("r", 1), 1.0)
    assert session.handle(received(cancel=link_pb2.Cancel(request_id="r", attempt=0)), 1.1) == []
    assert session.handle(received(cancel=link_pb2.Cancel(request_id="r", attempt=1)), 1.1) == [s.Abort(("r", 1))]
    assert session.in_flight == {("r", 1)}, "until the engine says that it ended"


@pytest.mark.parametrize("broken", [submit("r"), submit(""), received(submit=link_pb2.Submit(request_id="q"))])
def test_a_broken_submit_ends_the_stream_and_aborts(broken: s.Received) -> None:
    session = ready_session()
    session.handle(submit("r"), 1.0)
    commands = session.handle(broken, 1.1)
    assert commands[0] == s.Abort(("r", 0)) and close_of(commands).code == "stream_broken"
    assert not session.in_flight


def test_in_flight_is_bounded() -> None:
    session = ready_session()
    for index in range(s.MAX_IN_FLIGHT):
        session.handle(submit(f"r{index}"), 1.0)
    (frame,) = sent(session.handle(submit("one more"), 1.0))
    (output,) = frame.outputs.outputs
    assert output.finish.error.code == "queue_full" and output.finish.error.retryable
    assert len(session.in_flight) == s.MAX_IN_FLIGHT


def test_calls_and_answers() -> None:
    session = ready_session()
    ids = generation_pb2.TokenIds(token_ids=[1])
    assert session.handle(received(call=link_pb2.Call(call_id="c", detokenize=ids)), 1.0) == [
        s.Ask(wire.DetokenizeCall("c", [1]))
    ]
    (frame,) = sent(session.handle(s.Answered(wire.CallResult(call_id="c", text="x")), 1.0))
    assert frame.call_result.text == "x"
    assert close_of(session.handle(received(call=link_pb2.Call(call_id="c")), 1.0)).code == "stream_broken"


def test_leaving_with_and_without_work() -> None:
    session = ready_session()
    commands = session.handle(s.Leave("bye", 1.0), 1.0)
    assert sent(commands)[0].leaving.reason == "bye" and close_of(commands).code == "left"

    session = ready_session()
    session.handle(submit("r"), 1.0)
    assert len(session.handle(s.Leave("bye", 1.0), 1.0)) == 1 and session.state is s.LinkState.DRAINING
    assert session.handle(s.Leave("bye", 9.0), 1.1) == []
    (frame,) = sent(session.handle(submit("q"), 1.2))
    assert frame.outputs.outputs[0].finish.error.code == "node_leaving"
    assert close_of(session.end(("r", 0))).code == "left"

    session = ready_session()
    session.handle(submit("r"), 1.0)
    session.handle(s.Leave("bye", 1.0), 1.0)
    commands = session.handle(s.Tick(), 2.0)
    assert commands[0] == s.Abort(("r", 0)) and close_of(commands).code == "left"


def test_leaving_before_the_welcome() -> None:
    session = s.Session("n1", "1.0", 0.0)
    session.handle(s.Opened(node_pb2.NodeState()), 0.0)
    assert close_of(session.handle(s.Leave("bye", 1.0), 0.1)).code == "left"


EVENTS = st.one_of(
    st.just(s.Opened(node_pb2.NodeState())),
    st.just(received(welcome=WELCOME)),
    st.just(received(goodbye=link_pb2.Goodbye(code="shutting_down", retry=True))),
    st.just(received(heartbeat_ack=link_pb2.HeartbeatAck(sequence=1))),
    st.builds(submit, st.sampled_from("abcd"), st.integers(0, 1)),
    st.builds(lambda r: received(cancel=link_pb2.Cancel(request_id=r)), st.sampled_from("abcd")),
    st.builds(lambda r: s.Produced([wire.Output(request_id=r, token_ids=[1])]), st.sampled_from("abcd")),
    st.just(s.NodeChanged(node_pb2.NodeState())),
    st.just(s.BooksChanged()),
    st.just(s.Tick()),
    st.just(s.Leave("bye", 2.0)),
    st.just(s.StreamEnded("gone")),
    st.builds(lambda r, a: (r, a), st.sampled_from("abcd"), st.integers(0, 1)),
)


@given(st.lists(st.tuples(EVENTS, st.floats(0, 3)), max_size=60))
def test_every_request_ends_once_and_nothing_is_sent_after_the_close(steps: list[tuple[Any, float]]) -> None:
    session = s.Session("n1", "1.0", 0.0)
    now, running, sequence, is_closed = 0.0, set[s.Key](), 0, False
    prefix = [(s.Opened(node_pb2.NodeState()), 0.0), (received(welcome=WELCOME), 0.0)]
    for event, pause in prefix + steps:
        now += pause
        if isinstance(event, tuple):
            commands = session.end(event) if event in running else []
            running.discard(event)
        else:
            commands = session.handle(event, now)
        assert not (is_closed and commands)
        for command in commands:
            match command:
                case s.Start(request):
                    key = (request.request_id, request.attempt)
                    assert key not in running
                    running.add(key)
                case s.Abort(key):
                    assert key in running
                    if session.state is s.LinkState.CLOSED:
                        running.discard(key)
                case s.SendHeartbeat(number, _):
                    assert number == sequence + 1
                    sequence = number
                case s.Close():
                    assert command is commands[-1]
                    is_closed = True
        assert session.in_flight == running
        assert (session.state is s.LinkState.CLOSED) == is_closed == (session.next_deadline() is None)
