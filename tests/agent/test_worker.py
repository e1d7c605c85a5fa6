"""Who asked, what ended, who must hear: with an engine that only records."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.engine_process import EnginePhase, EngineProcess
from shoal.agent.worker import MAX_CALLS, Worker
from shoal.runtime import wire


class Engine:
    def __init__(self) -> None:
        self.phase = EnginePhase.SERVING
        self.sent: list[Any] = []
        self.takes = True

    def send(self, message: wire.ToEngine) -> bool:
        if not self.takes or self.phase is not EnginePhase.SERVING:
            return False
        wire.encode_frame(message)
        self.sent.append(message)
        return True


class Requester:
    def __init__(self) -> None:
        self.outputs: list[wire.Output] = []
        self.ended: list[tuple[str, int]] = []
        self.answers: list[wire.CallResult] = []

    def on_outputs(self, outputs: list[wire.Output]) -> None:
        self.outputs += outputs

    def on_end(self, key: tuple[str, int]) -> None:
        self.ended.append(key)

    def on_answer(self, result: wire.CallResult) -> None:
        self.answers.append(result)


def worker() -> tuple[Worker, Engine]:
    it, engine = Worker(), Engine()
    it.attach(cast(EngineProcess, engine))
    return it, engine


def request(request_id: str, n: int = 1) -> wire.Request:
    return wire.Request(request_id=request_id, prompt=wire.TextPrompt("x"), n=n)


def done(request_id: str, choice: int = 0, reason: wire.FinishReason = wire.FinishReason.STOP) -> wire.Output:
    finish = wire.Finish(reason=reason, usage=wire.Usage(1, 1), timings=wire.Timings())
    return wire.Output(request_id=request_id, choice=choice, token_ids=[1], finish=finish)


def error_of(output: wire.Output) -> wire.ErrorInfo:
    assert output.finish is not None and output.finish.error is not None
    return output.finish.error


def test_outputs_go_to_who_asked() -> None:
    it, _ = worker()
    one, two = Requester(), Requester()
    it.submit(request("a"), one)
    it.submit(request("b", n=2), two)
    it.on_batch(wire.OutputBatch([done("a"), done("b", 1), wire.Output(request_id="b"), done("unknown")]))
    assert [output.request_id for output in one.outputs] == ["a"] and one.ended == [("a", 0)]
    assert [output.choice for output in two.outputs] == [1, 0] and two.ended == []
    it.on_batch(wire.OutputBatch([done("b", 0)]))
    assert two.ended == [("b", 0)] and it.num_running == 0


def test_a_second_link_cannot_take_or_abort_an_id() -> None:
    it, engine = worker()
    one, two = Requester(), Requester()
    it.submit(request("a"), one)
    it.submit(request("a"), two)
    assert error_of(two.outputs[0]).code == "duplicate_request" and two.ended == [("a", 0)]
    it.abort(("a", 0), two)
    it.forget(("a", 0), two)
    assert it.num_running == 1 and len(engine.sent) == 1


def test_abort_waits_for_the_engine_and_forget_does_not() -> None:
    it, engine = worker()
    one = Requester()
    it.submit(request("a"), one)
    it.abort(("a", 0), one)
    assert engine.sent[-1] == wire.Abort("a", 0) and it.num_running == 1
    it.on_batch(wire.OutputBatch([done("a", reason=wire.FinishReason.ABORT)]))
    assert one.ended == [("a", 0)]
    it.submit(request("b"), one)
    it.forget(("b", 0), one)
    assert engine.sent[-1] == wire.Abort("b", 0) and it.num_running == 0
    it.on_batch(wire.OutputBatch([done("b")]))
    assert one.ended == [("a", 0)]


def test_a_refused_request_has_one_output_whatever_n_is() -> None:
    it, engine = worker()
    one = Requester()
    it.submit(request("a", n=3), one)
    it.on_batch(wire.OutputBatch([done("a", reason=wire.FinishReason.ERROR)]))
    assert one.ended == [("a", 0)] and it.num_running == 0 and engine.sent[-1] == wire.Abort("a", 0)


@pytest.mark.parametrize(
    ("phase", "code"), [(EnginePhase.STARTING, "engine_failed"), (EnginePhase.SERVING, "queue_full")]
)
def test_an_engine_that_takes_nothing(phase: EnginePhase, code: str) -> None:
    it, engine = worker()
    engine.phase, engine.takes = phase, False
    one = Requester()
    it.submit(request("a"), one)
    error = error_of(one.outputs[0])
    assert error.code == code and error.retryable and one.ended == [("a", 0)] and it.num_running == 0
    it.ask(wire.DetokenizeCall("c", [1]), one)
    assert one.answers[0].call_id == "c" and one.answers[0].error is not None and one.answers[0].error.code == code


def test_a_request_beyond_the_frame_is_refused_for_good() -> None:
    it, _ = worker()
    one = Requester()
    big = request("a")
    big.prompt = wire.TextPrompt("x" * (wire.MAX_FRAME_BYTES + 1))
    it.submit(big, one)
    assert error_of(one.outputs[0]).code == "request_too_large" and not error_of(one.outputs[0]).retryable


def test_calls_of_two_links_with_one_id() -> None:
    it, engine = worker()
    one, two = Requester(), Requester()
    it.ask(wire.DetokenizeCall("c", [1]), one)
    it.ask(wire.DetokenizeCall("c", [2]), two)
    first, second = (call.call_id for call in engine.sent)
    it.on_call_result(wire.CallResult(call_id=second, text="two"))
    it.on_call_result(wire.CallResult(call_id=first, text="one"))
    it.on_call_result(wire.CallResult(call_id=first, text="again"))
    assert [(a.call_id, a.text) for a in one.answers] == [("c", "one")]
    assert [(a.call_id, a.text) for a in two.answers] == [("c", "two")]


def test_calls_are_bounded() -> None:
    it, _ = worker()
    one = Requester()
    for index in range(MAX_CALLS + 1):
        it.ask(wire.DetokenizeCall(f"c{index}", [1]), one)
    (refused,) = one.answers
    assert refused.call_id == f"c{MAX_CALLS}" and refused.error is not None and refused.error.code == "queue_full"


def test_a_lost_engine_fails_everything_once() -> None:
    it, _ = worker()
    one = Requester()
    it.submit(request("a", n=3), one)
    it.ask(wire.DetokenizeCall("c", [1]), one)
    prompt = wire.PromptOutput(token_ids=[1, 2, 3])
    it.on_batch(wire.OutputBatch([wire.Output(request_id="a", token_ids=[7, 8], prompt=prompt), done("a", 1)]))
    one.outputs.clear()
    it.on_lost()
    assert [(output.choice, output.first_index) for output in one.outputs] == [(0, 2), (2, 0)]
    assert all(error_of(output).code == "engine_failed" and error_of(output).retryable for output in one.outputs)
    assert one.outputs[0].finish is not None and one.outputs[0].finish.usage == wire.Usage(3, 2)
    assert one.ended == [("a", 0)] and len(one.answers) == 1 and it.num_running == 0
    it.on_lost()
    assert len(one.outputs) == 2


STEPS = st.lists(
    st.tuples(st.sampled_from(["submit", "finish", "abort", "forget", "lost", "down", "up"]), st.sampled_from("abc")),
    max_size=50,
)


@given(STEPS)
def test_every_submitted_request_ends_exactly_once(steps: list[tuple[str, str]]) -> None:
    it, engine = worker()
    one = Requester()
    num_submitted = num_forgotten = 0
    for step, request_id in steps:
        match step:
            case "submit":
                it.submit(request(request_id), one)
                num_submitted += 1
            case "finish":
                it.on_batch(wire.OutputBatch([done(request_id)]))
            case "abort":
                it.abort((request_id, 0), one)
            case "forget":
                before = it.num_running
                it.forget((request_id, 0), one)
                num_forgotten += before - it.num_running
            case "lost":
                it.on_lost()
            case "down" | "up":
                engine.phase = EnginePhase.WAITING if step == "down" else EnginePhase.SERVING
        assert len(one.ended) + it.num_running + num_forgotten == num_submitted
