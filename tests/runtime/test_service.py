"""The engine as a process, spoken to in frames: how it begins, what it answers, and all the ways in which it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.kernels.cpu import best_isa
from shoal.runtime import wire

TIMEOUT_S = 30.0


class Child:
    """One engine process. Frames are read by a thread, so that a test can wait with a limit."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "shoal.runtime"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.frames: list[wire.FromEngine] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._stderr: list[bytes] = []
        self._log = threading.Thread(target=self._read_log, daemon=True)
        self._log.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while len(prefix := self.process.stdout.read(4)) == 4:
            body = self.process.stdout.read(wire.frame_length(prefix))
            with self._news:
                self.frames.append(wire.from_engine_decoder.decode(body))
                self._news.notify_all()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._stderr.append(line)

    def send(self, *messages: wire.ToEngine) -> None:
        self.write(b"".join(map(wire.encode_frame, messages)))

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def wait_for(self, wanted: Callable[[wire.FromEngine], bool]) -> Any:
        """The first frame, of all that came, for which `wanted` holds."""
        seen = 0
        deadline = time.monotonic() + TIMEOUT_S
        with self._news:
            while True:
                for frame in self.frames[seen:]:
                    if wanted(frame):
                        return frame
                seen = len(self.frames)
                assert self._news.wait(deadline - time.monotonic()), f"nothing came; stderr: {self.log()}"

    def outputs(self, request_id: str) -> list[wire.Output]:
        with self._news:
            batches = [frame for frame in self.frames if isinstance(frame, wire.OutputBatch)]
        return [output for batch in batches for output in batch.outputs if output.request_id == request_id]

    def finish_of(self, request_id: str) -> wire.Finish:
        def has_finish(frame: wire.FromEngine) -> bool:
            outputs = frame.outputs if isinstance(frame, wire.OutputBatch) else []
            return any(output.request_id == request_id and output.finish is not None for output in outputs)

        batch = self.wait_for(has_finish)
        return next(o.finish for o in batch.outputs if o.request_id == request_id and o.finish is not None)

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def status(self) -> int:
        status = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        self._log.join(TIMEOUT_S)
        return status

    def log(self) -> str:
        return b"".join(self._stderr).decode()


@pytest.fixture
def start() -> Iterator[Callable[[], Child]]:
    children: list[Child] = []

    def make() -> Child:
        children.append(Child())
        return children[-1]

    yield make
    for child in children:
        child.process.kill()
        child.status()
        for pipe in (child.process.stdin, child.process.stdout, child.process.stderr):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # what was still buffered for a child that is gone
                pass


def configure(directory: Path, **options: Any) -> wire.Configure:
    options = {"parallel": 2, "context": 256, "threads": 1} | options
    return wire.Configure(model_dir=str(directory), served_name="tiny", options=options)


def request(name: str, text: str = "hello", **fields: Any) -> wire.Request:
    fields = {"sampling": wire.Sampling(temperature=0.0), "ignore_eos": True, "max_tokens": 5} | fields
    return wire.Request(request_id=name, prompt=wire.TextPrompt(text=text), **fields)


def is_ready(frame: wire.FromEngine) -> bool:
    return isinstance(frame, wire.Ready)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_conversation_from_configure_to_the_end(
    start: Callable[[], Child], native_checkpoint: Path, backend: str
) -> None:
    """One process, since each start costs a second: facts, answers, calls, refusals, abort, books, end."""
    child = start()
    child.send(configure(native_checkpoint, backend=backend, context=1024))
    ready: wire.Ready = child.wait_for(is_ready)
    assert (ready.model, ready.max_model_len, ready.max_running) == ("tiny", 1024, 2)
    assert ready.vocab_size == 300
    assert (ready.backend, ready.format) == (backend, "bf16")
    assert ready.isa == best_isa() if backend == "cpu" else ready.isa != ""  # torch has words of its own
    assert {"chat", "completions"} <= set(ready.capabilities)
    assert len(ready.source_digest) == len(ready.serving_digest) == 64
    assert ready.source_digest != ready.serving_digest
    for pool, num_bytes in ready.allocated_bytes.items():
        assert num_bytes == ready.planned_bytes[pool]

    child.send(request("one"), request("two", n=2, stop=["never"]))
    finish = child.finish_of("one")
    assert finish.reason is wire.FinishReason.LENGTH
    assert finish.usage == wire.Usage(prompt_tokens=5, completion_tokens=5)
    outputs = child.outputs("one")
    assert [output.first_index for output in outputs] == [0, 1, 2, 3, 4]
    assert outputs[0].prompt is not None
    assert outputs[0].prompt.token_ids == list(b"hello")
    child.finish_of("two")

    child.send(
        wire.TokenizeCall(call_id="t", prompt=wire.TextPrompt(text="hé")),
        wire.DetokenizeCall(call_id="d", token_ids=list("hé".encode())),
        wire.DetokenizeCall(call_id="bad", token_ids=[5, 300]),
        wire.TokenizeCall(call_id="broken", prompt=wire.Conversation(messages=b"not json")),
    )
    results = {
        name: child.wait_for(lambda frame, name=name: isinstance(frame, wire.CallResult) and frame.call_id == name)
        for name in ("t", "d", "bad", "broken")
    }
    assert results["t"].token_ids == list("hé".encode())
    assert results["d"].text == "hé"
    assert results["bad"].error.param == "tokens[1]"
    assert (results["broken"].error.code, results["broken"].error.param) == ("invalid_request", "messages")

    child.send(request("long", "x" * 1100), request("odd", sampling=wire.Sampling(top_p=7.0)))
    error = child.finish_of("long").error
    assert error is not None
    assert (error.code, error.param, error.retryable) == ("context_length_exceeded", "prompt", False)
    error = child.finish_of("odd").error
    assert error is not None
    assert (error.code, error.param) == ("invalid_request", "top_p")

    # Aborted while it runs, while it waits, and before the engine has seen it.
    child.send(request("runs", max_tokens=900, logprobs=20))
    child.wait_for(lambda frame: bool(child.outputs("runs")))
    child.send(
        wire.Abort(request_id="runs"), request("gone", max_tokens=900, logprobs=20), wire.Abort(request_id="gone")
    )
    child.send(wire.Abort(request_id="never was"))
    for name in ("runs", "gone"):
        assert child.finish_of(name).reason is wire.FinishReason.ABORT
    assert len(child.outputs("runs")) < 900

    child.wait_for(
        lambda frame: (
            isinstance(frame, wire.Stats)
            and frame.generation_tokens >= 15
            and (frame.running, frame.waiting, frame.kv_blocks_used, frame.state_slots_used) == (0, 0, 0, 0)
        )
    )
    child.end_input()
    ended_at = time.monotonic()
    assert child.status() == 0
    assert time.monotonic() - ended_at < 1.5
    assert [line.split()[0] for line in child.log().splitlines()] in ([], ["converting", "converted"])


def test_the_end_of_stdin_ends_it_in_the_middle_of_steps(start: Callable[[], Child], tiny_checkpoint: Path) -> None:
    child = start()
    child.send(configure(tiny_checkpoint, context=4096))
    child.wait_for(is_ready)
    child.send(request("runs", max_tokens=400))
    child.wait_for(lambda frame: bool(child.outputs("runs")))
    child.end_input()
    ended_at = time.monotonic()
    assert child.status() == 0
    assert time.monotonic() - ended_at < 1.5


def test_a_corrupt_checkpoint_is_told_and_ends_it(
    start: Callable[[], Child], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for file in tiny_checkpoint.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:-100] if file.suffix == ".safetensors" else content)
    child = start()
    child.send(configure(tmp_path))
    failed: wire.LoadFailed = child.wait_for(lambda frame: isinstance(frame, wire.LoadFailed))
    assert failed.error.code == "checkpoint_corrupt"
    assert "model.safetensors" in failed.error.message
    assert child.status() == 1


def test_no_prompt_and_no_answer_reaches_the_log(start: Callable[[], Child], tiny_checkpoint: Path) -> None:
    canary = "CANARY-7f3a"
    child = start()
    child.send(configure(tiny_checkpoint))
    child.wait_for(is_ready)
    bad_tool = json.dumps([{"role": "user", "content": canary, "tool_calls": [{"function": canary}]}]).encode()
    deep = b'[{"role": "user", "content": ' + b"[" * 5000 + b'"CANARY-7f3a"' + b"]" * 5000 + b"}]"
    prompts: dict[str, wire.Prompt] = {
        "text": wire.TextPrompt(text=canary),
        "long": wire.TextPrompt(text=canary * 50),
        "tool": wire.Conversation(messages=bad_tool),
        "deep": wire.Conversation(messages=deep),
        "kwargs": wire.Conversation(
            messages=b'[{"role": "user", "content": "CANARY-7f3a"}]', template_kwargs=b'{"messages": "CANARY-7f3a"}'
        ),
        "json": wire.Conversation(messages=b'[{"role": "CANARY-7f3a"'),
    }
    for name, prompt in prompts.items():
        child.send(wire.Request(request_id=name, prompt=prompt, max_tokens=3, stop=[canary]))
    reasons = {name: child.finish_of(name).reason for name in prompts}
    assert reasons.pop("text") is not wire.FinishReason.ERROR
    assert set(reasons.values()) == {wire.FinishReason.ERROR}
    child.write(b"\x0b\x00\x00\x00CANARY-7f3a")
    assert child.status() == 2
    assert "CANARY" not in child.log()
    # Of the model, which the native back end cannot serve, and of the peer.
    assert [line.split(":")[0] for line in child.log().splitlines()] == [
        "the reference back end serves",
        "the peer broke the protocol",
    ]
