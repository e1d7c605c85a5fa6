"""The engine's process from within: the same service over two pipes, with scripted logits and faults put where they hurt."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_driver import scripted  # type: ignore[import-not-found]

from shoal.runtime import wire
from shoal.runtime.block_manager import BlockManager
from shoal.runtime.engine import Engine
from shoal.runtime.frame_pipe import Outbox, read_frame
from shoal.runtime.intake import Intake
from shoal.runtime.open_requests import OpenRequests
from shoal.runtime.prompt import BuiltPrompt
from shoal.runtime.refusals import DuplicateRequest, QueueFull
from shoal.runtime.scheduler import Scheduler, SchedulerLimits, StepPlan
from shoal.runtime.service import Service, load_configured
from shoal.runtime.step_result import StepResult

TIMEOUT_S = 30.0


def request(name: str, text: str = "hello", **fields: Any) -> wire.Request:
    fields = {"sampling": wire.Sampling(temperature=0.0), "ignore_eos": True, "max_tokens": 5} | fields
    return wire.Request(request_id=name, prompt=wire.TextPrompt(text=text), **fields)


class Pipes:
    """A service in a thread, with an engine of scripted logits; `left` is the status with which it would have left."""

    def __init__(self, load: Callable[[wire.Configure], tuple[Engine, wire.Ready]]) -> None:
        input_fd, self._write_fd = os.pipe()
        self._read_fd, output_fd = os.pipe()
        self._fds = [input_fd, self._write_fd, self._read_fd, output_fd]
        self.left: list[int] = []
        self.returned: list[int] = []
        self._service = Service(input_fd, output_fd, load, self.left.append)
        self._thread = threading.Thread(target=lambda: self.returned.append(self._service.run()))
        self._thread.start()

    def send(self, *messages: wire.ToEngine) -> None:
        self.write(b"".join(map(wire.encode_frame, messages)))

    def write(self, data: bytes) -> None:
        assert os.write(self._write_fd, data) == len(data)

    def read(self) -> wire.FromEngine:
        body = read_frame(self._read_fd)
        assert body is not None
        return wire.from_engine_decoder.decode(body)

    def finishes(self, count: int) -> dict[str, wire.Finish]:
        """Of the next `count` choices that end."""
        found: dict[str, wire.Finish] = {}
        while len(found) < count:
            frame = self.read()
            for output in frame.outputs if isinstance(frame, wire.OutputBatch) else []:
                if output.finish is not None:
                    found[f"{output.request_id}/{output.choice}"] = output.finish
        return found

    def end(self) -> int:
        os.close(self._write_fd)
        self._fds.remove(self._write_fd)
        return self.status()

    def status(self) -> int:
        self._thread.join(TIMEOUT_S)
        (status,) = self.returned
        return status

    def close(self) -> None:
        """Its threads must be gone before their descriptors' numbers are given to others."""
        if self._write_fd in self._fds:
            os.close(self._write_fd)
            self._fds.remove(self._write_fd)
        self._thread.join(TIMEOUT_S)
        for fd in self._fds:
            os.close(fd)


READY = wire.Ready(
    model="scripted", size="", format="bf16", backend="reference", max_model_len=9, vocab_size=300, max_running=4,
    capabilities=[], source_digest="", serving_digest="", determinism_class="",
)  # fmt: skip
CONFIGURE = wire.Configure(model_dir="", served_name="scripted")


@pytest.fixture
def serve(tiny_intake: Intake) -> Iterator[Callable[..., Pipes]]:
    opened: list[Pipes] = []

    def make(load: Callable[[wire.Configure], tuple[Engine, wire.Ready]] | None = None) -> Pipes:
        engine = scripted(tiny_intake, [97, 98])
        opened.append(Pipes(load or (lambda _: (engine, READY))))
        return opened[-1]

    yield make
    for pipes in opened:
        pipes.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff" + b"x" * 100,
        b"\x05\x00\x00\x00hello",
        wire.encode_frame(request("before configure", "CANARY-7f3a")),
        wire.encode_frame(CONFIGURE) * 2,
    ],
    ids=["too long", "not msgpack", "not configured", "configured twice"],
)
def test_a_broken_peer_ends_it_with_status_2_and_one_line(
    serve: Callable[..., Pipes], garbage: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    pipes = serve()
    pipes.write(garbage)
    assert pipes.status() == 2
    log = capfd.readouterr().err
    assert log.startswith("the peer broke the protocol: ")
    assert log.count("\n") == 1


def test_an_end_within_a_frame_is_an_end(serve: Callable[..., Pipes], capfd: pytest.CaptureFixture[str]) -> None:
    pipes = serve()
    pipes.write(b"\x05\x00\x00\x00he")
    assert pipes.end() == 0
    assert capfd.readouterr().err == ""


def test_a_wrong_option_is_told_and_ends_it(serve: Callable[..., Pipes], tiny_checkpoint: Path) -> None:
    pipes = serve(load_configured)
    pipes.send(wire.Configure(model_dir=str(tiny_checkpoint), served_name="x", options={"backend": "abacus"}))
    failed = pipes.read()
    assert isinstance(failed, wire.LoadFailed)
    assert failed.error.code == "option_invalid"
    assert pipes.status() == 1


def test_a_step_that_raises_fails_its_requests_and_the_process_without_their_text(
    serve: Callable[..., Pipes], tiny_intake: Intake, capfd: pytest.CaptureFixture[str]
) -> None:
    class Raises:
        def execute(self, plan: StepPlan, wanted: object) -> StepResult:
            raise RuntimeError(f"CANARY: {plan.rows[0].sequence.token_ids}")

    limits = SchedulerLimits(
        max_running=2, max_batched_tokens=8, max_prefill_beside_decode=7, max_waiting=8, max_scored_tokens=8
    )
    scheduler = Scheduler(limits, BlockManager(num_blocks=64, num_slots=2, block_tokens=4))
    pipes = serve(lambda _: (Engine(replace(tiny_intake, max_model_len=99), scheduler, Raises()), READY))
    pipes.send(CONFIGURE, request("one", "CANARY", n=3))
    finishes = pipes.finishes(3)
    assert pipes.status() == 1
    for finish in finishes.values():
        assert finish.error is not None
        assert (finish.error.code, finish.error.retryable) == ("engine_failed", True)
    log = capfd.readouterr().err
    assert "builtins.RuntimeError" in log
    assert "execute" in log
    assert "CANARY" not in log


def test_a_prompt_that_breaks_us_fails_alone(
    serve: Callable[..., Pipes], tiny_intake: Intake, capfd: pytest.CaptureFixture[str]
) -> None:
    def build(prompt: wire.Prompt) -> BuiltPrompt:
        if isinstance(prompt, wire.Conversation):
            raise KeyError(f"CANARY {prompt.messages!r}")
        return tiny_intake.build(prompt)

    engine = scripted(replace(tiny_intake, build=build), [97])
    pipes = serve(lambda _: (engine, READY))
    bad = wire.Request(request_id="bad", prompt=wire.Conversation(messages=b"CANARY"), max_tokens=3)
    pipes.send(CONFIGURE, bad, request("fine"))
    finishes = pipes.finishes(2)
    assert finishes["bad/0"].error is not None
    assert finishes["bad/0"].error.code == "internal_error"
    assert finishes["fine/0"].reason is wire.FinishReason.LENGTH
    assert pipes.end() == 0
    log = capfd.readouterr().err
    assert "builtins.KeyError" in log
    assert "CANARY" not in log


def test_an_abort_that_overtakes_its_request_still_ends_it(serve: Callable[..., Pipes], tiny_intake: Intake) -> None:
    """The prompt is still being read when the abort arrives; the engine meets them the other way round."""
    is_reading, abort_is_in = threading.Event(), threading.Event()

    def build(prompt: wire.Prompt) -> BuiltPrompt:
        is_reading.set()
        assert abort_is_in.wait(TIMEOUT_S)
        return tiny_intake.build(prompt)

    engine = scripted(replace(tiny_intake, build=build), [97])
    pipes = serve(lambda _: (engine, READY))
    pipes.send(CONFIGURE, request("slow", max_tokens=1000), request("also", n=2))
    assert is_reading.wait(TIMEOUT_S)
    pipes.send(wire.Abort(request_id="slow"), wire.Abort(request_id="also"), wire.Abort(request_id="also"))
    while not pipes._service._open.is_aborted(("also", 0)):
        time.sleep(0.001)
    abort_is_in.set()
    finishes = pipes.finishes(3)
    assert {finish.reason for finish in finishes.values()} == {wire.FinishReason.ABORT}
    assert set(finishes) == {"slow/0", "also/0", "also/1"}
    assert pipes.end() == 0


def test_a_request_of_an_open_id_is_refused(serve: Callable[..., Pipes]) -> None:
    pipes = serve()
    pipes.send(CONFIGURE, request("same", max_tokens=1500), request("same"))
    error = pipes.finishes(1)["same/0"].error
    assert error is not None
    assert error.code == "duplicate_request"
    assert pipes.end() == 0


def test_a_reader_that_pauses_does_not_keep_it_from_reading_or_ending(serve: Callable[..., Pipes]) -> None:
    """Nobody reads its output: the pipe fills, writers wait, and the end of stdin is seen all the same."""
    pipes = serve()
    pipes.send(CONFIGURE)
    for index in range(200):
        pipes.send(wire.DetokenizeCall(call_id=f"c{index}", token_ids=[97] * 2000))
    assert pipes.end() == 0


def test_it_does_not_leave_before_its_time_nor_stay_beyond(serve: Callable[..., Pipes], tiny_intake: Intake) -> None:
    """A step that takes too long is left behind when stdin has ended."""
    is_in_step, may_go_on = threading.Event(), threading.Event()

    class Slow:
        def execute(self, plan: StepPlan, wanted: object) -> StepResult:
            is_in_step.set()
            may_go_on.wait(TIMEOUT_S)
            raise RuntimeError

    limits = SchedulerLimits(
        max_running=2, max_batched_tokens=8, max_prefill_beside_decode=7, max_waiting=8, max_scored_tokens=8
    )
    scheduler = Scheduler(limits, BlockManager(num_blocks=64, num_slots=2, block_tokens=4))
    pipes = serve(lambda _: (Engine(replace(tiny_intake, max_model_len=99), scheduler, Slow()), READY))
    pipes.send(CONFIGURE, request("stuck"))
    assert is_in_step.wait(TIMEOUT_S)
    os.close(pipes._write_fd)
    pipes._fds.remove(pipes._write_fd)
    deadline = time.monotonic() + 2.0
    while not pipes.left and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pipes.left == [0]
    may_go_on.set()


def test_an_idle_engine_sleeps_and_speaks_once_a_second(serve: Callable[..., Pipes]) -> None:
    pipes = serve()
    pipes.send(CONFIGURE)
    assert isinstance(pipes.read(), wire.Ready)
    assert isinstance(pipes.read(), wire.Stats)
    began_at, cpu_s = time.monotonic(), time.process_time()
    assert isinstance(pipes.read(), wire.Stats)
    assert 0.9 < time.monotonic() - began_at < 3.0
    assert time.process_time() - cpu_s < 0.2
    assert pipes.end() == 0


# --- the parts -------------------------------------------------------------------------------------------------------


def test_open_requests_are_bounded_by_number_and_bytes() -> None:
    requests = OpenRequests(max_requests=2, max_bytes=100)
    requests.open(("a", 0), 60)
    with pytest.raises(QueueFull):
        requests.open(("b", 0), 41)
    requests.open(("b", 0), 40)
    requests.close(("a", 0))
    with pytest.raises(DuplicateRequest):
        requests.open(("b", 0), 1)
    requests.open(("a", 0), 60)
    with pytest.raises(QueueFull):
        requests.open(("c", 0), 0)


def test_an_abort_counts_once_and_only_while_the_request_is_open() -> None:
    requests = OpenRequests()
    assert not requests.abort(("a", 0))
    requests.open(("a", 0), 1)
    assert requests.abort(("a", 0))
    assert not requests.abort(("a", 0))
    assert requests.is_aborted(("a", 0))
    requests.close(("a", 0))
    assert not requests.is_aborted(("a", 0))
    requests.open(("a", 0), 1)
    assert not requests.is_aborted(("a", 0))


def test_the_outbox_makes_writers_wait_and_loses_nothing() -> None:
    read_fd, write_fd = os.pipe()
    outbox = Outbox(write_fd, max_bytes=100_000)
    frames = [bytes([index]) * 40_000 for index in range(12)]
    writer = threading.Thread(target=lambda: [outbox.put(frame) for frame in frames])
    writer.start()
    received = bytearray()
    time.sleep(0.05)
    assert writer.is_alive()  # more than the pipe and the outbox hold
    while len(received) < 12 * 40_000:
        received += os.read(read_fd, 65536)
    writer.join(TIMEOUT_S)
    assert bytes(received) == b"".join(frames)
    assert outbox.flush(TIMEOUT_S)
    os.close(read_fd)
    assert outbox.put(b"x")  # taken, and then found to have no reader
    deadline = time.monotonic() + TIMEOUT_S
    while outbox.put(b"x"):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.close(write_fd)


def test_the_outbox_writes_at_once_what_the_pipe_takes_and_keeps_the_order() -> None:
    """A token's frame is out when `put` returns; a pipe that is full holds up nobody who puts."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    outbox = Outbox(write_fd)
    assert outbox.put(b"first")
    assert os.read(read_fd, 100) == b"first"
    frames = [index.to_bytes(4, "little") * 750 for index in range(60)]
    assert all(outbox.put(frame) for frame in frames)
    received = bytearray()
    deadline = time.monotonic() + TIMEOUT_S
    while len(received) < 60 * 3000:
        assert time.monotonic() < deadline
        try:
            received += os.read(read_fd, 65536)
        except BlockingIOError:
            time.sleep(0.001)
    assert bytes(received) == b"".join(frames)
    assert outbox.flush(TIMEOUT_S)
    os.close(read_fd)
    outbox.close()
    os.close(write_fd)


def test_the_service_needs_no_torch_to_see_the_end_of_its_input() -> None:
    code = "import sys, shoal.runtime.service; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False, timeout=TIMEOUT_S).returncode == 0
